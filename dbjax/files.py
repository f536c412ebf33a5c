"""Directories and files: preparing, locking, atomic writes, reads whose errors name the file."""

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
    """Makes a directory if it does not exist, and checks that it can be written to.

    Args:
      directory: the path of the directory.
      what: the name by which errors call the directory.

    Returns:
      The path of the directory.

    Raises:
      ValueError: the directory cannot be made or written to.
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
    """Makes the directory of a file that is to be written, and returns the file's path.

    Raises:
      ValueError: the directory cannot be made or written to, or the path is itself a directory.
    """
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory: name a file")
    prepare(path.parent, f"the folder of {path.name!r},")
    return path


@contextlib.contextmanager
def os_errors_naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to an OSError in the block.

    The error of a full disk, for example, does not name the file by itself.
    """
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the old file or the new one, never a part.

    Raises:
      OSError: the file cannot be written; the error names it.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file atomically, as `write_text` does."""
    with os_errors_naming(path):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value atomically as strict JSON; `plain` says how it is converted.

    Raises:
      OSError: the file cannot be written; the error names it.
    """
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str, of: str = "run") -> dict[str, Any]:
    """Reads the object in a JSON file that a run, or another command, has written.

    Args:
      path: the path of the file.
      *keys: keys that the object must have.
      of: what writes such files, for errors: "run" or "sweep".

    Raises:
      OSError: the file does not exist or cannot be read.
      ValueError: the file does not hold a JSON object with these keys; the error names the file.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, error, of) from error
    if not isinstance(value, dict):
        raise damaged_file(path, "it is not a JSON object", of)
    for key in keys:
        if key not in value:
            raise damaged_file(path, f"it has no {key!r}", of)
    return value


# The errors that Python raises where a value does not have the expected form.
_UNFIT = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


@contextlib.contextmanager
def format_errors_naming(path: Path, of: str = "run") -> Iterator[None]:
    """Turns errors of interpreting a file's content into a ValueError of one line.

    Args:
      path: the file that the block interprets.
      of: what writes such files, for errors: "run" or "sweep".
    """
    try:
        yield
    except _UNFIT as error:
        if str(path) in str(error):
            raise
        raise damaged_file(path, one_line(error), of) from error


def damaged_file(path: Path, why: object, of: str = "run") -> ValueError:
    """Returns the error for a file that is damaged, or was written by another program."""
    return ValueError(
        f"{str(path)!r} is not what a {of} leaves: {why}; restore it, or name another folder"
    )


def plain(value: Any, *, infinity: str | None = None) -> Any:
    """Converts a value to types of JSON, which has finite numbers only.

    NaN becomes null. An infinite number becomes the string `infinity`, or "-" + `infinity`; it
    becomes null if `infinity` is None.
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


LOCK = ".lock"  # the name of the file that is locked


@contextlib.contextmanager
def lock_directory(
    directory: str | Path, *, what: str = "workdir", wait: bool = False
) -> Iterator[None]:
    """Locks a directory while the block runs, so that no second process uses it.

    The kernel releases the lock when the process exits, however it exits.

    Args:
      directory: the directory; it is made if it does not exist.
      what: the name by which errors call the directory.
      wait: whether to wait for a lock that another process holds, instead of raising an error.

    Raises:
      ValueError: another process holds the lock, or the directory cannot be used.
    """
    path = prepare(directory, what) / LOCK
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
