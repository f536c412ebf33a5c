"""A run that was interrupted, or is given more time, goes on in its workdir."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from dbjax.checkpoint import Checkpoints, CheckpointState
from dbjax.files import plain, read_json
from dbjax.run_dir import SUMMARY
from experiments.defaults import flat
from experiments.folders import CHECKPOINTS
from experiments.saved import CONFIG, saved_fields

_LENGTH = ("until_s", "options.steps")
_LOG = logging.getLogger("dbjax")
_MAY_DIFFER = {  # in the config of whoever takes a run up
    *_LENGTH, "evaluations", "evaluate_examples", "max_spans", "event_log", "data_dir",
    *(f"checkpoint.{name}" for name in ("every_s", "every_updates", "keep")),
    *(f"options.{name}" for name in ("replicas", "shards", "shard_backups")),
}  # fmt: skip


class ResumePoint(NamedTuple):
    """What lies in a workdir.

    Attributes:
      directory: of checkpoints.
      checkpoints: of the run that begins now; None: it writes none.
      content: to go on from; None: it begins anew.
    """

    directory: Path
    checkpoints: Checkpoints | None
    content: CheckpointState | None

    def begin(self) -> None:
        """What lies there of another run goes."""
        if self.checkpoints is not None:
            self.checkpoints.begin()
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def checkpoints_of(workdir: str | Path, config: ml_collections.ConfigDict) -> Iterator[ResumePoint]:
    """The run's checkpoints, and what there is to go on from.

    Raises:
      ValueError: a run of another config lies in the workdir, or none of the checkpoints of one
        that would be gone on with can be read.
    """
    directory = Path(workdir) / CHECKPOINTS
    goes_on, keep = _goes_on(Path(workdir), config), config.checkpoint.keep
    if keep < 0 or (goes_on and not keep):
        raise ValueError(
            f"checkpoint.keep={keep} must be at least {int(goes_on)}"
            + (": the workdir holds a run that is gone on with from one" if goes_on else "")
        )
    if not keep:
        yield ResumePoint(directory, None, None)
        return
    with Checkpoints(directory, keep=keep, anew=not goes_on) as checkpoints:
        content = checkpoints.latest() if goes_on else None
        if goes_on and content is None and checkpoints.any():
            raise ValueError(
                f"no checkpoint in {str(directory)!r} can be read: to begin anew, delete it"
            )
        if content is not None:
            _LOG.info("taken up at %.1f s", content.time_s)
        yield ResumePoint(directory, checkpoints, content)


def _goes_on(workdir: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether the run that lies there is gone on with.

    One that was interrupted is, and one that ended and is given more time. The same once more
    takes its place.

    Raises:
      ValueError: the run that lies there is of another config, and would be lost.
    """
    if not (workdir / CONFIG).exists():
        return False
    last = saved_fields(workdir)
    have, want = flat(last), flat(plain(config.to_dict(), infinity="inf"))
    interrupted = _was_interrupted(workdir, last)
    if not any((workdir / CHECKPOINTS).glob("[0-9]*")):
        if interrupted:
            _LOG.info("begins anew: what was interrupted in %s left no checkpoint", workdir)
            return False
        more = False
    else:
        more = interrupted or _is_longer(have, want)
    if differs := _difference(have, want, _MAY_DIFFER if more else frozenset()):
        raise ValueError(
            f"workdir {str(workdir)!r} holds {'an interrupted' if interrupted else 'a finished'} "
            f"run with {differs}: give another --workdir, or delete that one"
        )
    if not more:
        _LOG.info("runs again what has ended in %s", workdir)
    return more


def _was_interrupted(workdir: Path, config: dict[str, Any]) -> bool:
    """Whether the run of that config that lies there did not come to its end."""
    if not (workdir / SUMMARY).exists():
        return True
    summary = read_json(workdir / SUMMARY, "interrupted", "config")
    return bool(summary["interrupted"] or summary["config"] != config)


def _is_longer(have: dict[str, Any], want: dict[str, Any]) -> bool:
    """Whether there is more time, or there are more steps."""
    before, now = ([_limit(config.get(name)) for name in _LENGTH] for config in (have, want))
    return before != now and all(b <= n for b, n in zip(before, now, strict=True))


def _limit(value: Any) -> float:
    try:
        return math.inf if value is None else float(value)
    except (TypeError, ValueError):  # of a file that is damaged: it differs
        return math.nan


def _difference(
    have: dict[str, Any], want: dict[str, Any], may_differ: Collection[str]
) -> str | None:
    """The first field that may not differ, and does."""
    for name in sorted({*have, *want}.difference(may_differ)):
        of_machines = name.startswith("ray.") or (
            name.startswith("cluster.") and want["runtime"] != "virtual"
        )
        if not of_machines and have.get(name) != want.get(name):
            return f"{name}={have.get(name)}, here it is {want.get(name)}"
    return None
