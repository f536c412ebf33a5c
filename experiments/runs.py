"""Runs many configs in parallel, each in its own folder; finished runs are not repeated."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from dbjax.arguments import require_at_least
from dbjax.files import format_errors_naming, lock_directory, plain, prepare
from dbjax.monitoring.health import kind
from dbjax.run_dir import METRICS, SUMMARY
from dbjax.run_dir.provenance import versions
from dbjax.signals import on_interrupt
from experiments.folders import require_place
from experiments.progress import counted
from experiments.report.read import Run, read
from experiments.sweep.pool import Pool, Process
from experiments.sweep.trial import Job, Outcome

_POLL_S = 0.2  # the longest time until Ctrl-C takes effect
_METRIC = "test_accuracy"
_DRAWN = (_METRIC, "train_accuracy", "updates", "examples")


def run_all(
    configs: Mapping[str, ml_collections.ConfigDict], workdir: str | Path, jobs: int, label: str
) -> dict[str, Run]:
    """Runs configs in virtual time in parallel processes, each on one core.

    If a folder already holds a finished run with the same config and package versions, that run is
    read instead of repeated. Logs a warning that names the runs that went wrong (diverged, say).

    Args:
      configs: the configs, by the subfolder of `workdir` to write each run to. They start in this
        order.
      workdir: the folder of all runs; locked meanwhile.
      jobs: the number of processes.
      label: the name of the whole in progress and warnings.

    Returns:
      All runs, by subfolder.

    Raises:
      ValueError: runs failed; the message says which and how. All others have finished and their
        results are kept.
      KeyboardInterrupt: interrupted; call again with the same arguments to continue.
    """
    require_at_least("", 1, jobs=jobs)
    require_place(workdir, "runs")
    workdir = prepare(workdir)
    with lock_directory(workdir):
        _run(configs, workdir, jobs, label)
    runs = {name: _read(workdir / name, name) for name in configs}
    wrong = [
        f"{name} ({', '.join(map(kind, run.warnings))})"
        for name, run in runs.items()
        if run.warnings
    ]
    if wrong:
        logging.getLogger("dbjax").warning(
            "%s: %d of %d runs went wrong: %s", label, len(wrong), len(runs), "; ".join(wrong)
        )
    return runs


def _read(folder: Path, name: str) -> Run:
    """Reads a run, and checks that it has all numbers that figures are drawn from."""
    run = read(folder, name)
    with format_errors_naming(folder / METRICS):
        for row in run.rows:
            _ = [float(row[number]) for number in _DRAWN]
    return run


def _run(
    configs: Mapping[str, ml_collections.ConfigDict], workdir: Path, jobs: int, label: str
) -> None:
    left = [name for name, config in configs.items() if not _is_there(workdir / name, config)]
    waiting = dict(enumerate(left))
    shares = dict.fromkeys(waiting, 0.0)  # the completed fraction of each unfinished run
    errors: list[str] = []
    start = functools.partial(Process, workdir / "workers.log")
    with (
        on_interrupt() as interrupted,
        Pool(start, jobs) as pool,
        counted(label, len(configs), "runs") as tell,
    ):
        tell(len(configs) - len(shares), "finished earlier", 0.0)
        while shares and not interrupted.by:
            while waiting and pool.free:
                number = next(iter(waiting))
                pool.give(number, Job(configs[waiting.pop(number)], _METRIC, 1, 1, prunes=False))
            for number, message in pool.messages(_POLL_S):
                name = left[number]
                if isinstance(message, Outcome):
                    if message.error:
                        errors.append(f"{name}: {message.error}")
                    else:
                        message.leave(workdir / name)
                    del shares[number]
                else:
                    shares[number] = message[0] / configs[name].evaluations
                tell(len(configs) - len(shares), name, sum(shares.values()))
    if shares:
        raise KeyboardInterrupt(interrupted.by)
    if errors:
        raise ValueError("; ".join(errors))


def _is_there(folder: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether a folder holds a finished run with this config and the present versions."""
    if not (folder / SUMMARY).exists():
        return False
    run = _read(folder, folder.name)
    same = run.config == plain(config.to_dict(), infinity="inf")
    return same and run.state == "finished" and run.about["versions"] == versions()
