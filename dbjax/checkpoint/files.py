"""Checkpoints in a directory: written in the background by Orbax, whole or not at all."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, final

import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.content import Content
from dbjax.checkpoint.encoding import Arrays, decode, encode
from dbjax.checkpoint.exact import Exact
from dbjax.checkpoint.known import Unknown

_FORMAT = 2
_OVERHEAD_BYTES = 200_000  # what Orbax writes beside the arrays, or less
# What the library below Orbax says of files that are not as they were written.
_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
_LOG = logging.getLogger("dbjax")


@final
class Checkpoints:
    """The latest checkpoints of one run. To be used in a `with` statement.

    Args:
      directory: of nothing else; made if it does not exist.
      keep: how many; older ones are deleted when a new one is whole.
      anew: what lies there is of another run: deleted when this one begins, or saves.

    Raises:
      ValueError: `keep` is below 1, or the directory cannot be used.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, anew: bool = False) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self._directory, self._ocp = Path(directory).absolute(), ocp
        self._full, self._anew = False, anew  # the disk was, the last time
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # cleaned in a thread, which fails loudly where the process soon ends: only if need be
            left = any("tmp" in path.name for path in self._directory.iterdir())
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=left)
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise ValueError(f"{str(directory)!r} cannot be used: {error.strerror}") from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._guarded(self._manager.close)

    def begin(self) -> None:
        """The run has begun: what lies here of another goes."""
        if self._anew:
            self._anew = False
            for step in self._manager.all_steps():
                self._manager.delete(step)

    def save(self, content: Content, arrays: Arrays | None = None) -> None:
        """Begins to write; what is encoded is no longer looked at when this returns.

        Where it cannot be written, a warning says so, and the one before stays.

        Args:
          arrays: those of `content.exact`.
        """
        self.begin()
        arrays, exact = arrays or Arrays(), content.exact
        about = {
            "format": _FORMAT,
            "content": encode(dataclasses.replace(content, exact=None), arrays),
            "exact": None if exact is None else [exact.program, exact.nodes],
            "arrays": [[str(a.dtype), a.shape, zlib.crc32(np.ascontiguousarray(a).data)]
                       for a in arrays.values],
        }  # fmt: skip
        args = self._ocp.args
        parts = args.Composite(
            arrays=args.PyTreeSave({str(i): a for i, a in enumerate(arrays.values) if a.size}),
            about=args.JsonSave(about),
        )
        if not self._has_room(sum(array.nbytes for array in arrays.values)):
            return
        step = 1 + (self._manager.latest_step() or 0)
        self._guarded(lambda: self._manager.save(step, args=parts))

    def _has_room(self, size: int) -> bool:
        free = shutil.disk_usage(self._directory).free
        needed = size + _OVERHEAD_BYTES
        if free < needed and not self._full:
            _LOG.warning(
                "no room for a checkpoint in %s: it takes %d kB of %d kB; the one before stays",
                self._directory, needed // 1000, free // 1000,
            )  # fmt: skip
        self._full = free < needed
        return not self._full

    def any(self) -> bool:
        """Whether there are any, readable or not."""
        return bool(self._manager.all_steps())

    def wait(self) -> None:
        """Until what was begun is on disk."""
        self._guarded(self._manager.wait_until_finished)

    def latest(self) -> Content | None:
        """The content of the newest that is whole, or None; warns of damaged ones.

        Raises:
          ValueError: it is whole, as far as is known, but cannot be read: it is of another version
            of dbjax, there is no permission, no memory.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self._directory / str(step)
            try:
                return self._read(step)
            except Exception as error:
                if not _is_damage(error):
                    kind = type(error).__name__
                    raise ValueError(f"cannot read checkpoint {path}: {kind}: {error}") from error
                said = " ".join(str(error).split())[:200]
                _LOG.warning("checkpoint %s is damaged and left out: %s", path, said)
        return None

    def _read(self, step: int) -> Content:
        args = self._ocp.args
        about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore())).about
        if about["format"] != _FORMAT:
            raise Unknown(f"its format is {about['format']!r}, here it is {_FORMAT}")
        kinds = about["arrays"]
        shaped = [np.zeros(shape, jnp.dtype(name)) for name, shape, _ in kinds]
        # Orbax takes no arrays without numbers.
        like = {str(i): array for i, array in enumerate(shaped) if array.size}
        as_numpy = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in like}
        whole = args.Composite(arrays=args.PyTreeRestore(like, restore_args=as_numpy))
        found = self._manager.restore(step, args=whole).arrays if like else {}
        arrays = [np.asarray(found.get(str(i), empty)) for i, empty in enumerate(shaped)]
        for array, (_, _, checksum) in zip(arrays, kinds, strict=True):
            if zlib.crc32(np.ascontiguousarray(array).data) != checksum:
                raise ValueError("an array is not what was written")
        content, exact = decode(about["content"], arrays), about["exact"]
        if not isinstance(content, Content):
            raise ValueError("it is no checkpoint of a run")
        if exact is not None:
            content = dataclasses.replace(content, exact=Exact(exact[0], exact[1], arrays))
        return content

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except Exception as error:
            _LOG.warning(
                "a checkpoint in %s could not be written, the one before stays: %s",
                self._directory, " ".join(str(error).split())[:200],
            )  # fmt: skip


def _is_damage(error: Exception) -> bool:
    """Whether files are half written, or not what was written."""
    of_files = isinstance(error, (ValueError, KeyError, FileNotFoundError))
    if isinstance(error, Unknown) or not of_files:
        return False
    code = re.match("([A-Z_]+): ", str(error))
    return code is None or code[1] in _DAMAGE
