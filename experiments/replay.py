"""Replays a run in threads or on Ray bit for bit from its event log.

python -m experiments.replay --workdir=DIR
"""

from __future__ import annotations

import time
from pathlib import Path

import rich.console
import rich.table

import dbjax
from dbjax.errors import ReplayError
from dbjax.files import damaged_file, format_errors_naming, read_json
from dbjax.run_dir import EVENTS, SUMMARY
from experiments import algorithms, build
from experiments.command_line import command, parse
from experiments.saved import CONFIG, saved


def replay(workdir: str | Path) -> tuple[dbjax.Replayed, str | None]:
    """Replays the run in a workdir.

    Returns:
      The replay, and the SHA-256 of the final parameters according to the run's summary; None if
      the run did not end, or could not compute it.

    Raises:
      ValueError: the workdir has no event log, or a file in it is damaged.
      ReplayError: the replay does not follow the log.
    """
    config = saved(workdir)
    script = read_log(workdir)
    with format_errors_naming(Path(workdir) / CONFIG):
        build.make_host_devices(config)
        task, method = build.task(config), algorithms.algorithm(config)
    found = dbjax.replay(task, method, script, seed=config.seed)
    summary = Path(workdir) / SUMMARY
    return found, _digest(summary) if summary.exists() else None


def _digest(path: Path) -> str | None:
    """The SHA-256 of the final parameters from a summary; None if the run could not compute it."""
    digest = read_json(path, "params_sha256")["params_sha256"]
    if not isinstance(digest, str | None):
        raise damaged_file(path, f"params_sha256={digest!r} must be str or None")
    return digest


def read_log(workdir: str | Path) -> dbjax.Script:
    """Reads the event log of the run in a workdir.

    Raises:
      ValueError: there is none, or it is damaged from its beginning on.
    """
    path = Path(workdir) / EVENTS
    try:
        with path.open(errors="replace") as lines:
            return dbjax.Script(lines)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}; --config.event_log=true writes one") from error
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: {error.strerror}; --config.event_log=true writes one, "
            "unless the run is resumed from a checkpoint"
        ) from error


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code, 1 if the parameters differ from the run's."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = parse(arguments, config="none")
    if chosen.workdir is None:
        raise ValueError(
            "needs --workdir=DIR of a run, and nothing else: the config is read from it"
        )
    begin = time.perf_counter()
    try:
        found, ended = replay(chosen.workdir)
    except ReplayError as error:
        raise ValueError(str(error)) from error
    same = found.params_sha256 == ended
    verdict = "the same bytes" if same else "DIFFERENT BYTES" if ended else "the run did not end"
    if found.breaks_off is not None and not same:
        verdict = f"the log breaks off {found.breaks_off}"
    table = rich.table.Table("", "", show_header=False)
    table.add_row("replayed calls", f"{found.calls:,}")
    table.add_row("parameters of the replay", found.params_sha256)
    table.add_row("parameters of the run", ended or "unknown")
    table.add_row("", verdict)
    table.add_row("wall s", f"{time.perf_counter() - begin:.3g}")
    rich.console.Console().print(table)
    return 0 if same or ended is None or found.breaks_off is not None else 1


if __name__ == "__main__":
    command(main)
