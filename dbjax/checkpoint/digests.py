"""Writes and checks digests of the files in a directory, so that every change is detected.

The file `digests` holds them in the format of `sha256sum`, followed by a digest of its own lines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

NAME = "digests"
# Orbax rewrites these after all other files; they are not needed to read a checkpoint.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_OWN = "# sha256 of the lines above: "


class Damaged(ValueError):
    """A file has changed since it was written, or is missing; the message names it."""


def write_digests(directory: Path) -> None:
    """Writes the digests of all files that are in the directory now, and flushes all to disk.

    Otherwise a power failure could leave empty files in a directory that has its final name.
    """
    lines = "".join(
        f"{_sha256(path)}  {path.relative_to(directory)}\n" for path in _files(directory)
    )
    (directory / NAME).write_text(f"{lines}{_OWN}{hashlib.sha256(lines.encode()).hexdigest()}\n")
    for path in (*directory.rglob("*"), directory):
        _flush(path)


def require_whole(directory: Path) -> None:
    """Checks that all files are as they were when the digests were written.

    Raises:
      Damaged: a file is missing or has changed.
    """
    for name, digest in _read(directory / NAME):
        path = directory / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if _sha256(path) != digest:
            raise Damaged(f"{path} has changed since it was written")


def _files(directory: Path) -> list[Path]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name not in (NAME, *_LATER))


def _flush(path: Path) -> None:
    """Waits until a file, or the list of names in a directory, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the digest of each file."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    lines, _, own = path.read_bytes().rpartition(_OWN.encode())
    if own != hashlib.sha256(lines).hexdigest().encode() + b"\n":
        raise Damaged(f"{path} has changed since it was written")
    for line in lines.decode().splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest
