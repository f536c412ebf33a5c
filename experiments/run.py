"""Runs an experiment.

python -m experiments.run --config=configs/NAME.py[:smoke] --workdir=DIR --config.FIELD=VALUE ...
"""

from __future__ import annotations

import ast
from pathlib import Path

import ml_collections
import rich.console
import rich.table

import dbjax
from dbjax.errors import best_effort
from dbjax.files import lock_directory
from dbjax.run_dir import RunWriter
from dbjax.runtime.trace import Row
from dbjax.signals import exit_code
from dbjax.train import BackgroundFn
from experiments import algorithms, build, plots
from experiments.command_line import HINTS, available, command, load_config, log_to_terminal, parse
from experiments.defaults import flat
from experiments.folders import require_place
from experiments.progress import progress
from experiments.resume import checkpoints_of


def run_config(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str,
    background: BackgroundFn | None = None,
) -> dbjax.Result:
    """Runs the experiment of a config and writes its results to `workdir`.

    An interrupted run in the workdir is resumed. The workdir is locked during the run.

    Args:
      config: the config; see `experiments.defaults`.
      workdir: the run directory; created if it is missing.
      label: the run's name in the progress bar and in curves.png.
      background: code to run during training, such as `Chaos`; see `dbjax.run`.

    Raises:
      ValueError: a field is wrong, or the workdir holds another run or is in use.
      OSError: parameters or summary cannot be written; names the file.
    """
    build.require_sound(config)
    require_place(workdir, "a run")
    build.make_host_devices(config)
    with lock_directory(workdir):
        result = _run(config, workdir, label, background)
        _draw(result, config, label, Path(workdir) / "curves.png")
    return result


def _draw(
    result: dbjax.Result, config: ml_collections.ConfigDict, label: str, picture: Path
) -> None:
    """Draws curves.png; a failure only logs a warning."""
    caption = _seeds(config)
    with best_effort(str(picture)):
        picture.unlink(missing_ok=True)
        curves = {label: result.evaluations}
        plots.save(plots.curves(curves, clock=build.clock(config), caption=caption), picture)


def _seeds(config: ml_collections.ConfigDict) -> str:
    data = "" if config.data_seed is None else f", data seed {config.data_seed}"
    return f"1 run, seed {config.seed}{data}"


def _run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str,
    background: BackgroundFn | None,
) -> dbjax.Result:
    method, arguments = algorithms.algorithm(config), build.run_arguments(config)
    task, clock = build.task(config), build.clock(config)
    trace = dbjax.Trace(max_spans=config.max_spans)
    with (
        checkpoints_of(workdir, config) as found,
        RunWriter(
            workdir, config.to_dict(), clock=clock, rows=trace.before(), begun=found.begin
        ) as files,
        progress(label, clock, config.until_s) as listen,
    ):
        logs = clock == "wall" if config.event_log is None else config.event_log
        log = files.event_log() if logs and found.content is None else None
        trace.listeners += [files.listen, listen]
        result = dbjax.run(
            task,
            method,
            **arguments,
            checkpoints=found.checkpoints,
            resume=found.content,
            background=background,
            trace=trace,
            log=log,
        )
        files.finish(result)
    return result


def title(config: ml_collections.ConfigDict) -> str:
    """The name of the method and its number of replicas, such as "Downpour + Adagrad [20]"."""
    name = plots.ALGORITHMS.get(config.algorithm, config.algorithm)
    rule = plots.RULES.get(config.rule.name, "")
    return f"{name}{rule} [{algorithms.algorithm(config).replicas}]"


def table(summary: Row) -> rich.table.Table:
    """The numbers of a summary as a table for the terminal."""
    drawn = rich.table.Table("", "", show_header=False)
    for name, value in summary.items():
        if name in ("node", "config", "versions", "params_sha256") or value in (None, []):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number(item)}" for key, item in value.items())
        if isinstance(value, list):
            value = "\n".join(value)
        drawn.add_row(name.replace("_", " "), number(value))
    return drawn


def number(value: object) -> str:
    """Formats a value for a table: floats with four digits, thousands separated by commas."""
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else (
            f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        )
    )


def help_text(config: ml_collections.ConfigDict | None) -> str:
    """The text of --help: usage, available configs, and the fields of the given config, if any."""
    lines = [
        (__doc__ or "").strip(),
        "",
        "configs (append :smoke for a version that takes seconds):",
    ]
    for path in available():
        first = (ast.get_docstring(ast.parse(Path(path).read_text())) or "").split("\n")[0]
        lines.append(f"  {path:38} {first}")
    if config is None:
        lines += ["", "--help with --config=FILE also lists its fields"]
    else:
        lines += ["", "fields of this config:"]
        for name, value in sorted(flat(config.to_dict()).items()):
            hint = f"   ({HINTS[name]})" if name in HINTS else ""
            lines.append(f"  --config.{name}={value}{hint}")
        lines += ["", "options, rule, data and model accept any argument of what they name;"]
        lines += ["choosing another rule (or algorithm, data set, model) resets its arguments."]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    asked = {"--help", "-h"} & set(arguments)
    if asked:
        given = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
        print(help_text(load_config(given[0]) if given else None))
        return 0
    config, workdir = parse(arguments).config_and_workdir()
    log_to_terminal()
    result = run_config(config, workdir, title(config))
    console = rich.console.Console()
    console.print(table(result.summary))
    console.print(
        f"results are in {workdir}: curves.png, summary.json, trace.json (open in ui.perfetto.dev)",
        soft_wrap=True,
    )
    interrupted = result.summary["interrupted"]
    if interrupted and config.checkpoint.keep:
        at_s = result.summary["time_s"]
        console.print(f"interrupted at {at_s:.4g} s: repeat the command to resume", soft_wrap=True)
    return exit_code(interrupted)


if __name__ == "__main__":
    command(main)
