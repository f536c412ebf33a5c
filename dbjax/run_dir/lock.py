"""One process at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dbjax.run_dir.files import os_errors_naming, prepare

LOCK = ".lock"


@contextlib.contextmanager
def lock_directory(directory: str | Path) -> Iterator[None]:
    """Nobody else is in the directory meanwhile. However this process ends, the kernel lets go.

    Raises:
      ValueError: another process is there, or the directory cannot be used.
    """
    path = prepare(directory) / LOCK
    with path.open("a+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
