"""Workers on the machines of a Ray cluster: Ray actors, which are called as all actors are."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, final

from dbjax.runtime.ray import RayOptions
from dbjax.runtime.ray.options import START_S
from experiments.sweep.pool import Worker
from experiments.sweep.worker import ONE_THREAD, serve

_POLL_S = 0.5


@contextlib.contextmanager
def actors(address: str) -> Iterator[Callable[[], Worker]]:
    """Connects to a Ray cluster, and yields a function that starts a worker on it.

    Args:
      address: the address of the cluster, as for `RayOptions`.

    Raises:
      ValueError: Ray is not installed, or the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("on=ray needs Ray: pip install 'dbjax[ray]'")
    from dbjax.runtime.ray.placement import Placement

    cluster = Placement(RayOptions(address=address), ())
    try:
        yield Actor
    finally:
        cluster.close()


@final
class Actor:
    """A worker that runs as a Ray actor, on one core of some machine.

    Two threads carry what goes through its connection to the actor and back.
    """

    def __init__(self) -> None:
        import ray

        kind: Any = ray.remote(_Serving)
        self._actor = kind.options(
            num_cpus=1,
            max_concurrency=2,  # one `take` and one `give` at a time
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": ONE_THREAD},
        ).remote()
        self._get: Callable[..., Any] = ray.get
        try:
            self._get(self._actor.start.remote(), timeout=START_S)
        except ray.exceptions.GetTimeoutError as error:
            ray.kill(self._actor)
            raise ValueError(
                f"Ray did not start a worker within {START_S:g} s: reduce --jobs to its free CPUs"
            ) from error
        self.connection, theirs = multiprocessing.Pipe()
        for carry in (self._carry_there, self._carry_back):
            threading.Thread(target=carry, args=[theirs], daemon=True).start()

    def end(self) -> str:
        import ray

        self.connection.close()
        ray.kill(self._actor)
        return "on Ray"

    def _carry_there(self, theirs: Connection) -> None:
        with contextlib.suppress(Exception):  # one end has gone: `_carry_back` closes the other
            while True:
                if theirs.poll(_POLL_S):  # a blocked `recv` would keep a closed connection open
                    self._get(self._actor.give.remote(theirs.recv()))

    def _carry_back(self, theirs: Connection) -> None:
        """Carries results until the actor dies or is ended, which closes the connection."""
        with contextlib.closing(theirs), contextlib.suppress(Exception):
            while True:
                theirs.send(self._get(self._actor.take.remote()))


class _Serving:
    """The remote side of `Actor`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.recv, self.send = self._jobs.get, self._results.put  # the ends that `serve` holds

    def start(self) -> None:
        """Starts to run trials."""
        # Ray would print every warning; the sweep counts them instead.
        logging.getLogger("dbjax").setLevel(logging.ERROR)
        threading.Thread(target=self._serve, daemon=True).start()

    def give(self, thing: Any) -> None:
        """Gives a job, or the answer to an evaluation, to the trial that runs."""
        self._jobs.put(thing)

    def take(self) -> Any:
        """Returns the next evaluation or outcome."""
        return self._results.get()

    def _serve(self) -> None:
        try:
            serve(self)
        finally:
            os._exit(1)  # so that Ray, and with it the sweep, notices
