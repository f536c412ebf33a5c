"""A digest of every file of a directory, so that whatever changes in one is found out.

The file `digests` holds them as `sha256sum` writes them, and a digest of its own lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

NAME = "digests"
# Orbax writes these once more after the rest; what they say is not needed to read a checkpoint.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_OWN = "# sha256 of the lines above: "


class Damaged(ValueError):
    """A file is not as it was written; the text names it."""


def write_digests(directory: Path) -> None:
    """Of all files that are there now."""
    lines = "".join(
        f"{_sha256(path)}  {path.relative_to(directory)}\n" for path in _files(directory)
    )
    (directory / NAME).write_text(f"{lines}{_OWN}{hashlib.sha256(lines.encode()).hexdigest()}\n")


def require_whole(directory: Path) -> None:
    """Raises Damaged where a file is gone, or is not as it was when the digests were written."""
    for name, digest in _read(directory / NAME):
        path = directory / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if _sha256(path) != digest:
            raise Damaged(f"{path} is not as it was written")


def _files(directory: Path) -> list[Path]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name not in (NAME, *_LATER))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """The names of the files, and their digests."""
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    lines, _, own = path.read_bytes().rpartition(_OWN.encode())
    if own != hashlib.sha256(lines).hexdigest().encode() + b"\n":
        raise Damaged(f"{path} is not as it was written")
    for line in lines.decode().splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest
