"""Workers: processes of this machine that live as long as the sweep."""

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
    """Where one trial at a time is run."""

    connection: Connection

    def end(self) -> str:
        """Ends it, if it has not ended; says how it did."""


@final
class Process:
    """A worker on this machine; it ends with this process."""

    def __init__(self, log: Path) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-m", "experiments.sweep.worker", str(theirs.fileno())]
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closed when this process dies, however it does
                stdout=said,
                stderr=said,
                pass_fds=(theirs.fileno(),),
                env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C is for the driver
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
    """So many workers, started when they are needed, replaced when they die."""

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
        return len(self._busy) < self._jobs

    def give(self, number: int, job: Job) -> None:
        """Has a trial run."""
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker.connection] = worker, number
        with contextlib.suppress(OSError):  # it is dead: `said` will find that out
            worker.connection.send(job)

    def said(self, timeout_s: float) -> list[tuple[int, Message]]:
        """What workers have said of which trials; of one that died, that."""
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
        """Whether the trial that was last said something of is to stop."""
        for connection, (_, given) in self._busy.items():
            if given == number:
                connection.send(stop)
