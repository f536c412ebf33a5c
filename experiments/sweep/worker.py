"""A worker process: runs trials one after another, until its driver disconnects."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Protocol

from experiments.sweep.trial import Job, run_trial

# Environment of every worker: one thread each, so that results do not depend on the number of
# workers, and no worker uses the core of another. XLA respects NPROC only.
ONE_THREAD = {"NPROC": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Channel(Protocol):
    """What connects a worker with its driver."""

    def send(self, thing: Any, /) -> None:
        """Sends something."""

    def recv(self) -> Any:
        """Waits for the next thing that was sent."""


def serve(connection: Channel) -> None:
    """Runs the jobs that arrive: sends every evaluation, and then the outcome.

    Where the job prunes, each evaluation is answered with whether to stop the run.
    """
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return

        def look(k: int, value: float, prunes: bool = job.prunes) -> bool:
            connection.send((k, value))
            return bool(connection.recv()) if prunes else False

        connection.send(run_trial(job, look))


def _served(connection: Connection) -> None:
    try:
        serve(connection)
    except Exception:
        logging.exception("worker")
    os._exit(1)


def _main(connection: Connection) -> None:
    """Runs trials in a second thread, and ends when the driver closes standard input.

    Signals are ignored, since they are meant for the driver: a run that a signal ended early would
    be mistaken for a complete one. Only the main thread could receive them in any case.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_served, args=(connection,), daemon=True).start()
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s")
    _main(Connection(int(sys.argv[1])))
