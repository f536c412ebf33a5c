"""A process that runs trials, one after another, until whoever gives them is gone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from experiments.sweep.trial import Job, run_trial

# Of every worker, however many there are, so that results do not depend on their number, and
# none takes another's core. XLA heeds NPROC only.
ONE_THREAD = {"NPROC": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def serve(connection: Connection) -> None:
    """Does the jobs that come: shows what is evaluated, answers with the outcome."""
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
    """Serves beside the main thread, which alone hears signals: they are for the driver.

    A run that ended by one would be taken for whole. The process ends with its driver.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_served, args=(connection,), daemon=True).start()
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s")
    _main(Connection(int(sys.argv[1])))
