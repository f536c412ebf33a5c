"""Many runs side by side, each left in a folder of its own; what is there is not done again."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_collections

from dbjax.arguments import require_at_least_one
from dbjax.interrupts import noted
from dbjax.workdir import SUMMARY, alone_in, prepare
from dbjax.workdir.files import plain
from dbjax.workdir.origin import versions
from experiments.progress import bar
from experiments.report.read import Run, read
from experiments.saved import CONFIG
from experiments.sweep.pool import Pool, Process
from experiments.sweep.trial import Job, Outcome

_POLL_S = 0.2  # how soon Ctrl-C is heard
_METRIC = "test_accuracy"


def run_all(
    configs: Mapping[str, ml_collections.ConfigDict], workdir: str | Path, jobs: int, label: str
) -> dict[str, Run]:
    """Runs configs in virtual time, as many at once as there are jobs, each on one core.

    Those whose folder holds a finished run of the same config, with the same versions, are read.

    Args:
      configs: by the folder in `workdir` that each is left in. They begin in this order.

    Raises:
      ValueError: a run failed; says which and how. What has ended before is kept.
      KeyboardInterrupt: the same call goes on.
    """
    require_at_least_one(jobs=jobs)
    workdir = prepare(workdir)
    with alone_in(workdir):
        _run(configs, workdir, jobs, label)
    return {name: read(workdir / name, name) for name in configs}


def _run(
    configs: Mapping[str, ml_collections.ConfigDict], workdir: Path, jobs: int, label: str
) -> None:
    waiting = {k: c for k, c in enumerate(configs.values()) if not _is_there(workdir, k, configs)}
    names = list(configs)
    start = functools.partial(Process, workdir / "workers.log")
    with noted() as interrupted, Pool(start, jobs) as pool, _progress(label, len(names)) as tell:
        tell(len(names) - len(waiting), "")
        shares = dict.fromkeys(waiting, 0.0)  # of each run that is not there yet
        while shares and not interrupted.by:
            while waiting and pool.free:
                number = next(iter(waiting))
                pool.give(number, Job(waiting.pop(number), _METRIC, 1, 1, prunes=False))
            for number, said in pool.said(_POLL_S):
                if isinstance(said, Outcome):
                    if said.error:
                        raise ValueError(f"{names[number]}: {said.error}")
                    said.leave(workdir / names[number])
                    del shares[number]
                else:
                    shares[number] = said[0] / configs[names[number]].evaluations
                tell(len(names) - len(shares) + sum(shares.values()), names[number])
    if interrupted.by:
        raise KeyboardInterrupt(interrupted.by)


def _is_there(workdir: Path, number: int, configs: Mapping[str, ml_collections.ConfigDict]) -> bool:
    """Whether the folder holds what running that config again would give."""
    name, config = list(configs.items())[number]
    folder = workdir / name
    if not (folder / SUMMARY).exists():
        return False
    about = json.loads((folder / CONFIG).read_text())
    same = about["config"] == plain(config.to_dict(), infinity="inf")
    return bool(same and about["versions"] == versions())


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, else a line of log for each run that has ended."""
    if not sys.stderr.isatty():
        last = 0

        def log(done: float, name: str) -> None:
            nonlocal last
            if int(done) > last:
                last = int(done)
                logging.getLogger("dbjax").info("%s: %d of %d runs %s", label, last, total, name)

        yield log
        return
    with bar("{task.completed:.1f} of {task.total} runs") as drawn:
        task = drawn.add_task(label, total=total, state="")
        yield lambda done, name: drawn.update(task, completed=done, state=name)
