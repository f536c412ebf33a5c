"""A run that was interrupted goes on in its workdir."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from dbjax.checkpoint import Checkpoints, Content
from dbjax.trace import Row
from dbjax.workdir import SUMMARY, is_left
from dbjax.workdir.files import plain
from experiments.saved import CONFIG

_CHECKPOINTS = "checkpoints"
_MAY_DIFFER = {  # in the config of whoever takes a run up
    "until_s", "evaluations", "evaluate_examples", "max_spans", "event_log", "data_dir",
    *(f"checkpoint.{name}" for name in ("every_s", "every_updates", "keep")),
    *(f"options.{name}" for name in ("steps", "replicas", "shards", "shard_backups")),
}  # fmt: skip


class Earlier(NamedTuple):
    """What is left of the run that was interrupted; nothing of a new one."""

    content: Content | None

    @property
    def rows(self) -> list[Row]:
        """Of metrics.jsonl: those before the checkpoint."""
        rows = self.content.rows if self.content is not None else ()
        return [row for row in rows if is_left(row)]


@contextlib.contextmanager
def checkpoints_of(
    workdir: str | Path, config: ml_collections.ConfigDict
) -> Iterator[tuple[Checkpoints | None, Earlier]]:
    """The run's checkpoints, and what there is to go on from.

    Raises:
      ValueError: an interrupted run of another config lies in the workdir, or none of its
        checkpoints can be read.
    """
    directory = Path(workdir) / _CHECKPOINTS
    goes_on, keep = _was_interrupted(Path(workdir)), config.checkpoint.keep
    if keep < 0 or (goes_on and not keep):
        raise ValueError(
            f"checkpoint.keep={keep} must be at least {int(goes_on)}"
            + (": the workdir holds an interrupted run, which goes on from one" if goes_on else "")
        )
    if goes_on:
        _require_same(Path(workdir), config)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    if not keep:
        yield None, Earlier(None)
        return
    with Checkpoints(directory, keep=keep) as checkpoints:
        content = checkpoints.latest() if goes_on else None
        if goes_on and content is None and checkpoints.any():
            raise ValueError(
                f"no checkpoint in {str(directory)!r} can be read: to begin anew, delete it"
            )
        if content is not None:
            logging.getLogger("dbjax").info("taken up at %.1f s", content.time_s)
        yield checkpoints, Earlier(content)


def _was_interrupted(workdir: Path) -> bool:
    """Whether a run lies there that did not come to its end."""
    if not (workdir / CONFIG).exists() or not (workdir / _CHECKPOINTS).exists():
        return False
    try:
        return bool(json.loads((workdir / SUMMARY).read_text())["interrupted"])
    except OSError:
        return True


def _require_same(workdir: Path, config: ml_collections.ConfigDict) -> None:
    have = flat(json.loads((workdir / CONFIG).read_text())["config"])
    want = flat(plain(config.to_dict(), infinity="inf"))
    for name in sorted({*have, *want} - _MAY_DIFFER):
        if name.startswith("ray.") or (name.startswith("cluster.") and config.runtime != "virtual"):
            continue
        if have.get(name) != want.get(name):
            raise ValueError(
                f"workdir {str(workdir)!r} holds an interrupted run with {name}={have.get(name)}, "
                f"here it is {want.get(name)}: give another --workdir, or delete that one"
            )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by their whole names, such as cluster.machine.speed."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found
