"""Files with the event logs of processes, which survive the deaths of the processes."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_HEADER = 1  # the number of lines at the beginning of a log that name its format
_READ_S = 10.0


@final
class LogFile:
    """An append-only file for the log of this process.

    It does not survive the death of the machine, since nothing waits for the disk.

    Attributes:
      path: where it is.
    """

    def __init__(self) -> None:
        self.path = f"{tempfile.gettempdir()}/dbjax-events-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(self.path, flags, 0o600)

    def write(self, lines: str) -> None:
        """Hands the lines over to the operating system."""
        left = lines.encode()
        while left:
            left = left[os.write(self._file, left) :]


class WrittenLog(NamedTuple):
    """The log file of one incarnation of a process.

    Attributes:
      node: the name of the node.
      machine: Ray's name of the machine.
      path: where the file is.
    """

    node: str
    machine: str
    path: str

    def rest(self, taken: int) -> str:
        """Returns the lines after the first ones that the driver has, and removes the file.

        Args:
          taken: the number of lines that the driver has, which does not have the header.

        Raises:
          Exception: the machine cannot be reached any more.
        """
        if self.machine == ray.get_runtime_context().get_node_id():
            return _rest(self.path, taken)
        there = NodeAffinitySchedulingStrategy(self.machine, soft=False)
        rest: Any = ray.remote(_rest)
        reading = rest.options(num_cpus=0, scheduling_strategy=there).remote(self.path, taken)
        text: str = ray.get(reading, timeout=_READ_S)
        return text


def _rest(path: str, taken: int) -> str:
    lines = Path(path).read_text().splitlines(keepends=True)
    os.unlink(path)
    complete = [line for line in lines if line.endswith("\n")]
    return "".join(complete[_HEADER + taken :])
