"""Resumes a run in its workdir if it was interrupted, or is given more time or steps."""

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
_MAY_DIFFER = {  # fields that may change when a run is resumed
    *_LENGTH, "evaluations", "evaluate_examples", "max_spans", "event_log", "data_dir",
    "executor",
    *(f"checkpoint.{name}" for name in ("every_s", "every_updates", "keep")),
    *(f"options.{name}" for name in ("replicas", "shards", "shard_backups")),
}  # fmt: skip


class ResumePoint(NamedTuple):
    """The checkpoints in a workdir.

    Attributes:
      directory: the folder of checkpoints.
      checkpoints: the manager that writes this run's checkpoints; None: the run writes none.
      content: the state to resume from; None: the run starts from scratch.
    """

    directory: Path
    checkpoints: Checkpoints | None
    content: CheckpointState | None

    def begin(self) -> None:
        """Deletes the checkpoints of a previous run that this one replaces."""
        if self.checkpoints is not None:
            self.checkpoints.begin()
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def checkpoints_of(workdir: str | Path, config: ml_collections.ConfigDict) -> Iterator[ResumePoint]:
    """Opens the checkpoints of a workdir, and finds the state to resume from.

    Args:
      workdir: the workdir of the run; may be empty.
      config: the config of the run that is about to start.

    Raises:
      ValueError: the workdir holds a run with another config, or an unfinished run whose
        checkpoints cannot be read.
    """
    directory = Path(workdir) / CHECKPOINTS
    resumes, keep = _resumes(Path(workdir), config), config.checkpoint.keep
    if keep < 0 or (resumes and not keep):
        raise ValueError(
            f"checkpoint.keep={keep} must be at least {int(resumes)}"
            + (" to resume the run in the workdir from a checkpoint" if resumes else "")
        )
    if not keep:
        yield ResumePoint(directory, None, None)
        return
    with Checkpoints(directory, keep=keep, overwrite=not resumes) as checkpoints:
        content = checkpoints.latest() if resumes else None
        if resumes and content is None and checkpoints.any():
            raise ValueError(
                f"no checkpoint in {str(directory)!r} can be read: delete that folder to start over"
            )
        if content is not None:
            _LOG.info("resumed at %.1f s", content.time_s)
        yield ResumePoint(directory, checkpoints, content)


def _resumes(workdir: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether to resume the run in the workdir.

    An interrupted run is resumed, and so is a finished run that is given more time or steps. A
    finished run with the same config is run again and replaced.

    Raises:
      ValueError: the workdir holds a run with another config, which would be lost.
    """
    if not (workdir / CONFIG).exists():
        return False
    last = saved_fields(workdir)
    have, want = flat(last), flat(plain(config.to_dict(), infinity="inf"))
    interrupted = _was_interrupted(workdir, last)
    if not any((workdir / CHECKPOINTS).glob("[0-9]*")):
        if interrupted:
            _LOG.info("starting over: the interrupted run in %s left no checkpoint", workdir)
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
        _LOG.info("starting over: the run in %s had finished", workdir)
    return more


def _was_interrupted(workdir: Path, config: dict[str, Any]) -> bool:
    """Whether the workdir's run, whose config.json has `config`, did not finish."""
    if not (workdir / SUMMARY).exists():
        return True
    summary = read_json(workdir / SUMMARY, "interrupted", "config")
    return bool(summary["interrupted"] or summary["config"] != config)


def _is_longer(have: dict[str, Any], want: dict[str, Any]) -> bool:
    """Whether the new config has a longer `until_s` or more steps than the old one, or both."""
    before, now = ([_limit(config.get(name)) for name in _LENGTH] for config in (have, want))
    return before != now and all(b <= n for b, n in zip(before, now, strict=True))


def _limit(value: Any) -> float:
    try:
        return math.inf if value is None else float(value)
    except (TypeError, ValueError):  # a damaged file: NaN differs from everything
        return math.nan


def _difference(
    have: dict[str, Any], want: dict[str, Any], may_differ: Collection[str]
) -> str | None:
    """Describes the first field that differs but must not; None if there is no such field.

    The fields of a cluster or of Ray may always differ unless they are what virtual time depends
    on.
    """
    for name in sorted({*have, *want}.difference(may_differ)):
        of_machines = name.startswith("ray.") or (
            name.startswith("cluster.") and want["runtime"] != "virtual"
        )
        if not of_machines and have.get(name) != want.get(name):
            return f"{name}={have.get(name)}, not {want.get(name)}"
    return None
