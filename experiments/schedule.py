"""Finds the timing of a run, without its arithmetic: who computes what when, and how stale it is.

python -m experiments.schedule --config=configs/NAME.py[:smoke] --workdir=DIR [--config.FIELD=VALUE]
python -m experiments.schedule --of=RUN --workdir=DIR

The first form is for a run in virtual time; the second one reads the event log of a run in threads
or on Ray, whose workdir is RUN. Both write schedule.npz, for `dbjax.Schedule.load` and
`dbjax.run_many`, and schedule.png.
"""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np
import rich.console
import rich.table

import dbjax
from dbjax.errors import ReplayError
from dbjax.files import lock_directory, prepare
from experiments import algorithms, build, plots
from experiments.command_line import command, log_to_terminal, parse
from experiments.folders import SCHEDULE, require_place
from experiments.replay import read_log
from experiments.saved import saved

PICTURE = "schedule.png"


def schedule_of(config: ml_collections.ConfigDict) -> dbjax.Schedule:
    """Returns the schedule of a run in virtual time.

    Raises:
      ValueError: a field of the config is wrong, or the timing of the run depends on values.
    """
    build.require_sound(config)
    if config.runtime != "virtual":
        raise ValueError(
            f"runtime={config.runtime!r} is timed by real machines: run it with "
            "--config.event_log=true, and give its workdir as --of"
        )
    return dbjax.schedule(
        build.task(config),
        algorithms.algorithm(config),
        build.cluster(config),
        until_s=config.until_s,
        seed=config.seed,
    )


def schedule_of_run(workdir: str | Path) -> dbjax.Schedule:
    """Returns the schedule of a run in threads or on Ray, from its event log.

    Raises:
      ValueError: the workdir has no event log, or the run's arithmetic cannot be recorded.
      ReplayError: the log does not fit the config.
    """
    config, script = saved(workdir), read_log(workdir)
    task, method = build.task(config), algorithms.algorithm(config)
    return dbjax.schedule_of_log(task, method, script, seed=config.seed)


def table(schedule: dbjax.Schedule) -> rich.table.Table:
    """Returns the numbers of a schedule, as a table for the terminal."""
    staleness = schedule.staleness()
    applied = staleness[staleness >= 0]
    end_s = float(np.nanmax(schedule.time_s, initial=0.0))
    found = {
        "replicas": f"{schedule.replicas:,}",
        "shards": f"{schedule.shards:,}",
        "gradients": f"{schedule.gradients:,}",
        "pushes": f"{schedule.pushes:,}",
        "last update": f"{end_s:.4g} s",
        "pushes per second": f"{schedule.pushes / end_s:.4g}" if end_s else "",
        "staleness in updates": (
            f"mean {applied.mean():.4g}, median {np.median(applied):.4g}, max {applied.max()}"
            if len(applied)
            else ""
        ),
        "version skew in updates": f"max {schedule.version_skew().max(initial=0)}",
        "digest": schedule.digest[:16],
    }
    drawn = rich.table.Table("", "", show_header=False)
    for name, value in found.items():
        if value:
            drawn.add_row(name, value)
    return drawn


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = parse(arguments, ("of",))
    config, of = chosen.config, chosen.options.get("of", "")
    if chosen.workdir is None or (config is None) == (not of):
        raise ValueError("needs --workdir=DIR, and either --config=FILE or --of=RUN; see --help")
    require_place(chosen.workdir, "a schedule")
    log_to_terminal()
    try:
        found = schedule_of(config) if config is not None else schedule_of_run(of)
    except ReplayError as error:
        raise ValueError(str(error)) from error
    workdir = prepare(chosen.workdir)
    with lock_directory(workdir):
        found.save(workdir / SCHEDULE)
        plots.save(plots.schedule(found), workdir / PICTURE)
    console = rich.console.Console()
    console.print(table(found))
    console.print(f"results are in {chosen.workdir}: {SCHEDULE}, {PICTURE}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    command(main)
