"""Checkpoints on disk: Orbax writes them in the background, completely or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.digests import Damaged, require_whole, write_digests
from dbjax.checkpoint.encoding import ArrayTable, Unknown, bytes_of, decode, encode, storable
from dbjax.checkpoint.exact import ExactState
from dbjax.checkpoint.state import CheckpointState, StoredCheckpoint
from dbjax.errors import one_line

_FORMAT = 3
_OVERHEAD_BYTES = 200_000  # the maximum size of what Orbax writes in addition to the arrays
_UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax appends to the name of a directory it writes
_LOG = logging.getLogger("dbjax")
# The highest number of a checkpoint in each directory whose write has failed in this process, or
# has not ended. It is not used again: threads of that write may still write under it, into the
# other checkpoint.
_FAILED: dict[Path, int] = {}


@final
class Checkpoints:
    """The latest checkpoints of one run, in a directory. Use it in a `with` statement.

    Args:
      directory: the directory, which must hold nothing else; it is created if it does not exist.
      keep: the number of checkpoints to keep; older ones are deleted when a new one is complete.
      anew: whether to delete the checkpoints of an earlier run when this run begins or saves.

    Raises:
      ValueError: `keep` is below 1, or the directory cannot be used.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, overwrite: bool = False) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        if not str(directory):
            raise ValueError("directory='' is empty: name a directory for checkpoints")
        self._directory, self._keep, self._ocp = Path(directory).absolute(), keep, ocp
        self._overwrite = overwrite
        self._full = False  # whether the disk was full the last time
        self._writing = 0  # the number of the checkpoint that was begun last
        self._failed = 0  # the highest number of one that had failed before
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        except OSError as error:
            raise ValueError(f"{str(directory)!r} cannot be used: {error.strerror}") from error

    def _open(self) -> Any:
        """Opens the directory with Orbax, and deletes what an interrupted or failed write left."""
        for path in self._directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            async_options=self._ocp.AsyncOptions(
                post_finalization_callback=self._seal,
                # Otherwise the threads of a write whose directories cannot be made wait for them
                # for minutes, and so does the end of the process.
                create_directories_asynchronously=False,
            ),
        )
        return self._ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._close()

    def begin(self) -> None:
        """Marks the beginning of the run: `overwrite` deletes an earlier run's checkpoints now."""
        if self._overwrite:
            self._overwrite = False
            for step in self._manager.all_steps():
                self._manager.delete(step)

    def save(self, content: CheckpointState, arrays: ArrayTable | None = None) -> None:
        """Starts writing a checkpoint in the background; its content may change afterwards.

        If the checkpoint cannot be written, a warning is logged, and the previous one is kept.

        Args:
          content: the content of the checkpoint.
          arrays: the table that holds the arrays of `content.exact`.
        """
        self.begin()
        self._guarded(lambda: self._save(content, arrays or ArrayTable()))

    def _save(self, content: CheckpointState, arrays: ArrayTable) -> None:
        exact = content.exact
        about = {
            "format": _FORMAT,
            "content": encode(dataclasses.replace(content, exact=None, stored=None), arrays),
            "exact": None if exact is None else [exact.program, exact.nodes],
            "arrays": [[str(a.dtype), a.shape, zlib.crc32(bytes_of(a))] for a in arrays.values],
        }
        args = self._ocp.args
        parts = args.Composite(
            arrays=args.PyTreeSave(
                {str(i): storable(a) for i, a in enumerate(arrays.values) if a.size}
            ),
            about=args.JsonSave(about),
        )
        if self._has_room(sum(array.nbytes for array in arrays.values)):
            self.wait()  # so that `_seal` finds only the checkpoint being written
            directory = self._directory.resolve()
            self._failed = _FAILED.get(directory, 0)
            self._writing = 1 + max([self._failed, *self._steps()])
            _FAILED[directory] = self._writing
            self._manager.save(self._writing, args=parts)

    def _seal(self) -> None:
        """Writes the digests when a checkpoint's files are written, before it is renamed."""
        for directory in self._directory.glob(f"{self._writing}.*"):
            write_digests(directory)

    def _has_room(self, size: int) -> bool:
        free = shutil.disk_usage(self._directory).free
        needed = size + _OVERHEAD_BYTES
        if free < needed and not self._full:
            _LOG.warning(
                "no room for a checkpoint in %s: it needs %d kB, %d kB are free; the previous "
                "checkpoint is kept",
                self._directory, needed // 1000, free // 1000,
            )  # fmt: skip
        self._full = free < needed
        return not self._full

    def any(self) -> bool:
        """Returns whether there are any checkpoints, readable or not."""
        return bool(self._steps())

    def _steps(self) -> list[int]:
        """Returns the numbers of the checkpoints, the newest first."""
        found = [path for path in self._directory.iterdir() if path.is_dir()]
        return sorted((int(p.name) for p in found if p.name.isdecimal()), reverse=True)

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        if self._guarded(self._manager.wait_until_finished) and self._writing in self._steps():
            _FAILED[self._directory.resolve()] = self._failed

    def latest(self) -> CheckpointState | None:
        """Reads the newest complete checkpoint, and warns of newer ones that cannot be read.

        Returns:
          The content of the checkpoint; None: there is none.

        Raises:
          ValueError: no checkpoint can be read, and at least one of them may not be damaged: it may
            have been written by another version of dbjax, or there may be no permission or too
            little memory to read it.
        """
        return self._newest(self._steps())

    def _newest(self, steps: Sequence[int]) -> CheckpointState | None:
        """Reads the first of these checkpoints that can be read."""
        failed: list[str] = []
        strange: Exception | None = None  # the first error other than known damage
        content = None
        for number, step in enumerate(steps):
            path = self._directory / str(step)
            try:
                content = self._read(step)
            except Exception as error:
                message = one_line(error, kind=False)
                if isinstance(error, Damaged):
                    failed.append(f"checkpoint {path} is damaged and skipped: {message}")
                    continue
                failed.append(f"cannot read checkpoint {path}: {type(error).__name__}: {message}")
                strange = strange or ValueError(failed[-1]).with_traceback(error.__traceback__)
            else:
                earlier = functools.partial(self._newest, steps[number + 1 :])
                content = dataclasses.replace(content, stored=StoredCheckpoint(path, earlier))
                break
        if content is None and strange is not None:
            raise strange
        stored = content.stored if content is not None else None
        instead = f"{stored.path} is used instead" if stored else "there is no other checkpoint"
        for message in failed:
            _LOG.warning("%s; %s", message, instead)
        return content

    def _read(self, step: int) -> CheckpointState:
        require_whole(self._directory / str(step))
        args = self._ocp.args
        about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore())).about
        if about["format"] != _FORMAT:
            raise Unknown(f"its format is {about['format']!r}, here it is {_FORMAT}")
        kinds = about["arrays"]
        shaped = [np.zeros(shape, jnp.dtype(name)) for name, shape, _ in kinds]
        # Orbax cannot save empty arrays.
        like = {str(i): storable(array) for i, array in enumerate(shaped) if array.size}
        as_numpy = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in like}
        whole = args.Composite(arrays=args.PyTreeRestore(like, restore_args=as_numpy))
        found = self._manager.restore(step, args=whole).arrays if like else {}
        arrays = [
            np.asarray(found.get(str(i), empty)).view(empty.dtype) for i, empty in enumerate(shaped)
        ]
        if any(zlib.crc32(bytes_of(a)) != kind[2] for a, kind in zip(arrays, kinds, strict=True)):
            raise Damaged("an array differs from the one that was to be written")
        content, exact = decode(about["content"], arrays), about["exact"]
        if not isinstance(content, CheckpointState):
            raise ValueError("it is not a checkpoint of a run")
        if exact is not None:
            content = dataclasses.replace(content, exact=ExactState(exact[0], exact[1], arrays))
        return content

    def _guarded(self, write: Any) -> bool:
        """Writes, or warns of what went wrong; returns whether nothing did."""
        try:
            write()
        except Exception as error:
            _LOG.warning(
                "a checkpoint in %s could not be written, the previous one is kept: %s",
                self._directory, one_line(error, kind=False),
            )  # fmt: skip
            self._reopen()
            return False
        return True

    def _reopen(self) -> None:
        """Opens the directory anew after a failed write.

        Orbax would raise other errors of that write later, in the next one, and has forgotten the
        old checkpoints that it was going to delete.
        """
        self._close()
        with contextlib.suppress(OSError):  # which the next write will report
            self._manager = self._open()

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # errors of a write were reported
            self._manager.close()
