"""Files and directories: prepared, locked, written in one step, and read with errors that name them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dbjax.errors import one_line


def prepare(directory: str | Path, what: str = "workdir") -> Path:
    """Makes a directory that can be written to.

    Args:
      what: how errors call it.

    Raises:
      ValueError: it cannot be made or written to.
    """
    if not str(directory).strip():
        raise ValueError(f"{what} {str(directory)!r} is empty: name a folder")
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"{what} {str(path)!r} cannot be written: {error.strerror}") from error


def prepare_file(path: Path) -> Path:
    """Makes the directory of a file that is to be written.

    Raises:
      ValueError: that cannot be made or written to, or the path is a directory itself.
    """
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory: name a file")
    prepare(path.parent, f"the folder of {path.name!r},")
    return path


@contextlib.contextmanager
def os_errors_naming(path: Path) -> Iterator[None]:
    """An OSError in the block names the file: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step.

    Raises:
      OSError: it cannot be written; names the file.
    """
    with os_errors_naming(path):
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (see `plain`)."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str, of: str = "run") -> dict[str, Any]:
    """The object of a JSON file that a run, or something else, has left.

    Raises:
      OSError: there is none, or it cannot be read.
      ValueError: it is no such file, or lacks one of the keys; names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, error, of) from error
    if not isinstance(value, dict):
        raise damaged_file(path, "it is no object", of)
    for key in keys:
        if key not in value:
            raise damaged_file(path, f"it has no {key!r}", of)
    return value


# What is raised where something is not what it is taken for.
_UNFIT = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


@contextlib.contextmanager
def format_errors_naming(path: Path, of: str = "run") -> Iterator[None]:
    """What goes wrong in the block with what was read is said of the file, in a line."""
    try:
        yield
    except _UNFIT as error:
        if str(path) in str(error):
            raise
        raise damaged_file(path, one_line(error), of) from error


def damaged_file(path: Path, why: object, of: str = "run") -> ValueError:
    """The error of a file that is damaged, or of another program."""
    return ValueError(
        f"{str(path)!r} is not what a {of} leaves: {why}; restore it, or name another folder"
    )


def plain(value: Any, *, infinity: str | None = None) -> Any:
    """`value` in the types of JSON, which has no numbers that are not finite.

    What is no number becomes null, what is infinite `infinity` or "-" + `infinity`.
    """
    if isinstance(value, dict):
        return {str(key): plain(item, infinity=infinity) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, infinity=infinity) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    if math.isinf(number) and infinity is not None:
        return infinity if number > 0 else f"-{infinity}"
    return number if math.isfinite(number) else None


LOCK = ".lock"


@contextlib.contextmanager
def lock_directory(directory: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a directory while the block runs.

    The kernel releases the lock when the process exits, however it exits.

    Args:
      directory: it is made if it does not exist.
      wait: waits for another process to leave, instead of raising an error.

    Raises:
      ValueError: another process is in the directory, or the directory cannot be used.
    """
    path = prepare(directory) / LOCK
    with path.open("a+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"{directory} is in use by process {file.read() or 'unknown'}: wait, or use "
                "another --workdir"
            ) from error
        with os_errors_naming(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
