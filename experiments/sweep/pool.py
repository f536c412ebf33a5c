"""A pool of workers that run trials, and workers that are processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, final

from experiments.sweep.trial import Job, Outcome
from experiments.sweep.worker import ONE_THREAD

Message = tuple[int, float] | Outcome


class Worker(Protocol):
    """Runs one trial at a time.

    Attributes:
      connection: the driver's end of the connection to the worker.
    """

    connection: Connection

    def end(self) -> str:
        """Stops the worker if it is still running, and returns a description of how it ended."""


@final
class Process:
    """A worker process on this machine, which ends when this process ends.

    Args:
      log: the file that receives what the worker prints.
    """

    def __init__(self, log: Path) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "experiments.sweep.worker", str(theirs.fileno())]
        with log.open("ab") as text:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # the kernel closes it however this process ends
                stdout=text,
                stderr=text,
                pass_fds=(theirs.fileno(),),
                env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C must reach the driver only
            )
        theirs.close()

    def end(self) -> str:
        self.connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.poll()
        if code is None:
            self._process.kill()
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@final
class Pool:
    """Up to `jobs` workers, which are started when needed and replaced when they fail.

    Args:
      start: starts a worker.
      jobs: the number of trials that may run at once.
    """

    def __init__(self, start: Callable[[], Worker], jobs: int) -> None:
        self._start, self._jobs = start, jobs
        self._idle: list[Worker] = []
        self._busy: dict[Connection, tuple[Worker, int]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.end()

    @property
    def free(self) -> bool:
        """Whether another trial can be started."""
        return len(self._busy) < self._jobs

    def give(self, number: int, job: Job) -> None:
        """Starts trial `number` on an idle or a new worker."""
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker.connection] = worker, number
        with contextlib.suppress(OSError):  # the worker failed; `text` reports that
            worker.connection.send(job)

    def messages(self, timeout_s: float) -> list[tuple[int, Message]]:
        """Waits for messages from the workers.

        Returns:
          Pairs of a trial's number and its message: an evaluation (its number and value), or the
          outcome of the trial. A worker that failed yields an outcome with an error. The list is
          empty if nothing arrives within `timeout_s`.
        """
        found: list[tuple[int, Message]] = []
        for connection in multiprocessing.connection.wait(list(self._busy), timeout_s):
            assert isinstance(connection, Connection)
            worker, number = self._busy[connection]
            message: Message
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = Outcome(error=f"its process died: {worker.end()}")
                del self._busy[connection]
            else:
                if isinstance(message, Outcome):
                    del self._busy[connection]
                    self._idle.append(worker)
            found.append((number, message))
        return found

    def answer(self, number: int, stop: bool) -> None:
        """Tells trial `number`, which waits for this after an evaluation, whether to stop."""
        for connection, (_, given) in self._busy.items():
            if given == number:
                connection.send(stop)
