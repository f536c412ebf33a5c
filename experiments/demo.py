"""A small version of the paper's comparison: Downpour SGD and SGD for equal virtual time.

python -m experiments.demo --workdir=DIR [--methods=sgd,adagrad,downpour] [--variant=smoke]
"""

from __future__ import annotations

import sys
from pathlib import Path

import rich.console
import rich.table

import dbjax
from dbjax.arguments import nearest
from dbjax.files import prepare
from dbjax.runtime.node_names import NodeKind, kind_of
from dbjax.runtime.trace import Row
from dbjax.signals import exit_code
from experiments import plots
from experiments.accuracy import time_to
from experiments.command_line import command, load_config, log_to_terminal, parse
from experiments.folders import require_place
from experiments.run import run_config

METHODS = {  # flag -> (name in figures, config)
    "sgd": ("SGD", "configs/speech_sgd.py"),
    "downpour": ("Downpour", "configs/speech_downpour.py"),
    "adagrad": ("Downpour + Adagrad", "configs/speech_downpour_adagrad.py"),
}
_WINDOW = 4  # the length of the drawn timeline, in mini-batches of a replica


def comparison(results: dict[str, dbjax.Result]) -> rich.table.Table:
    """A table with a column for each method.

    Speed-ups are measured at the hold-out accuracy that the first method has at its end.
    """
    base, first = next(iter(results.items()))
    stated, end_s = first.evaluations[-1]["test_accuracy"], first.summary["time_s"]
    times = [time_to(result.evaluations, stated) for result in results.values()]
    summaries = [result.summary for result in results.values()]
    staleness = [summary["staleness_updates"] for summary in summaries]
    rows: dict[str, list[str]] = {
        "hold-out accuracy at the end": [f"{s['test_accuracy']:.1%}" for s in summaries],
        "  guessing the most frequent class": [_guess(s) for s in summaries],
        f"virtual seconds to {stated:.1%}": [f"{t:.1f}" for t in times],
        f"  speed-up over {base}'s total time": [f"{end_s / t:.1f}" for t in times],
        f"  speed-up over {base}'s time to {stated:.1%}": [f"{times[0] / t:.1f}" for t in times],
        "updates": [f"{s['updates']:,}" for s in summaries],
        "staleness in updates: mean": [f"{s['mean']:.1f}" for s in staleness],
        "  predicted mean, M - 1": [f"{s['predicted_mean']:.1f}" for s in staleness],
        "  p95, max": [f"{s['p95']}, {s['max']}" for s in staleness],
        "fetched + pushed": [_moved(result) for result in results.values()],
        "wall seconds": [f"{s['wall_s']:.0f}" for s in summaries],
    }
    table = rich.table.Table("", *results)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _guess(summary: Row) -> str:
    return f"{summary['most_frequent_class']['share']:.1%}"


def _moved(result: dbjax.Result) -> str:
    if not any(kind_of(span.node) is NodeKind.SHARD for span in result.trace.spans):
        return "nothing travels"  # the parameters are on the replica's own machine
    fetched, pushed = result.summary["bytes_fetched"], result.summary["bytes_pushed"]
    return f"{fetched / 1e9:.1f} + {pushed / 1e9:.1f} GB"


def draw(results: dict[str, dbjax.Result], workdir: Path, seed: int) -> None:
    """Draws accuracy.png, and timeline.png for the last method."""
    runs = {name: result.evaluations for name, result in results.items()}
    caption = f"speech frames; 1 run per method, seed {seed}; equal virtual time"
    plots.save(plots.curves(runs, clock="virtual", caption=caption), workdir / "accuracy.png")
    name, last = list(results.items())[-1]
    ends = [s.end_s for s in last.trace.spans if s.kind == "compute"]
    steps = sorted(s.end_s - s.start_s for s in last.trace.spans if s.kind == "compute")
    if ends:
        end_s, step_s = max(ends), steps[len(steps) // 2]
        title = f"{name}: activity of each node during {_WINDOW * step_s:.2f} virtual seconds"
        plots.save(
            plots.timeline(
                last.trace.spans, end_s - (_WINDOW + 1) * step_s, end_s - step_s, title=title
            ),
            workdir / "timeline.png",
        )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = parse(arguments, ("methods", "variant"), config="none")
    if chosen.workdir is None:
        raise ValueError("needs --workdir=DIR")
    methods = chosen.options.get("methods", "sgd,downpour,adagrad").split(",")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"no method {method!r}{nearest(method, METHODS)}")
    variant = chosen.options.get("variant", "")
    configs = {method: load_config(f"{METHODS[method][1]}:{variant}") for method in methods}
    require_place(chosen.workdir, "runs")
    workdir = prepare(chosen.workdir)
    log_to_terminal()
    results: dict[str, dbjax.Result] = {}
    for method, config in configs.items():
        label = f"{METHODS[method][0]} [{dict(config.options).get('replicas', 1)}]"
        results[label] = run_config(config, workdir / method, label)
        if results[label].summary["interrupted"]:
            break
    draw(results, workdir, config.seed)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 110)
    console.print(comparison(results))
    console.print(
        f"curves:   {workdir / 'accuracy.png'}\ntimeline: {workdir / 'timeline.png'}, and "
        f"{workdir / method / 'trace.json'} (open in ui.perfetto.dev)",
        soft_wrap=True,
    )
    return exit_code(results[label].summary["interrupted"])


if __name__ == "__main__":
    command(main)
