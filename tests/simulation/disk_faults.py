"""Faults of a disk: while a checkpoint is written by the real code, in its files, and in reading.

Calls to the operating system fail, or are where the process is killed. Most of a checkpoint is
written by C++ in Orbax, which no function of Python can replace: there, the kernel cuts files short
at the limit that a process may set on their length.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import resource
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = ("mkdir", "fsync", "rename", "replace")  # those of `os` that write checkpoints and others
FILE_LIMITS_BYTES = (0, 150, 400, 2_000, 30_000)  # some files of a checkpoint are longer
AT_REST = ("flip", "cut", "zeros", "gone")
WRITES = ("no room", "short write", "error", "kill", "power cut")


class Killed(BaseException):
    """The process is killed: nothing after it happens."""


@contextlib.contextmanager
def failing_write(directory: Path, kind: str | None, draws: random.Random) -> Iterator[None]:
    """The disk fails, or the process is killed, while something is written in a directory.

    Raises:
      Killed: at the end of the block, where the directory is as it was at that moment.
    """
    if kind == "no room":
        with mock.patch("shutil.disk_usage", return_value=types.SimpleNamespace(free=100_000)):
            yield
    elif kind == "short write":
        with _longest_file(draws.choice(FILE_LIMITS_BYTES)):
            yield
    elif kind == "error":
        with _before_a_call(draws, _full):
            yield
    elif kind is not None:
        with _killed(directory, draws, power=kind == "power cut"):
            yield
    else:
        yield


def damage(file: Path, kind: str, draws: random.Random) -> None:
    """Changes a file that is not empty, or deletes it."""
    content = bytearray(file.read_bytes())
    at = draws.randrange(len(content))
    if kind == "gone":
        file.unlink()
        return
    if kind == "cut":
        del content[at:]
    elif kind == "zeros" and any(content[at:]):
        content[at:] = bytes(len(content) - at)
    else:
        content[at] ^= 1 << draws.randrange(8)
    file.write_bytes(content)


@contextlib.contextmanager
def filling_up(draws: random.Random) -> Iterator[None]:
    """From one of the first calls in the block on, no file of this process can become longer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))

    try:
        with _before_a_call(draws, full, first=20):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def unreadable(directory: Path) -> Iterator[None]:
    """No file below a directory can be read."""
    right = io.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, Path) and directory in file.parents:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return right(file, *args, **kwargs)

    with mock.patch("io.open", opened):
        yield


def filled_files(directory: Path) -> list[Path]:
    """All files that are not empty."""
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


@contextlib.contextmanager
def _longest_file(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot be longer: a write is cut short there, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _before_a_call(draws: random.Random, act: Callable[[], None], first: int = 4) -> Iterator[None]:
    """Something happens before one of the first calls of a function of `os`, if it is called."""
    name, left = draws.choice(CALLS), draws.randrange(first)
    right = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            act()
        return right(*args, **kwargs)

    with mock.patch.object(os, name, call):
        yield


def _full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def _killed(directory: Path, draws: random.Random, *, power: bool) -> Iterator[None]:
    """The process is killed at some moment: a copy made then is all that is left.

    Args:
      directory: where it writes.
      draws: decide the moment.
      power: it is the machine that stops, so files without an fsync are empty.
    """
    copy, synced, right = directory.with_name("copy"), set[int](), os.fsync
    before = set(filled_files(directory))

    def fsync(descriptor: int) -> None:
        right(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def kill() -> None:
        shutil.copytree(directory, copy)
        for file in filled_files(directory) if power else ():
            if file not in before and file.stat().st_ino not in synced:
                (copy / file.relative_to(directory)).write_bytes(b"")

    with mock.patch("os.fsync", fsync), _before_a_call(draws, kill):
        yield
    if not copy.exists():
        kill()
    shutil.rmtree(directory)
    copy.rename(directory)
    raise Killed
