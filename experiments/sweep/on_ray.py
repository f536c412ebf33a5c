"""Workers on the machines of a Ray cluster.

Ray places the workers and notices when they fail. Each worker opens a connection to the driver, and
all messages go over that connection, as they do for local processes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import multiprocessing.connection
import secrets
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, final

from dbjax.runtime.ray import RayOptions
from experiments.sweep.pool import Worker
from experiments.sweep.worker import ONE_THREAD, serve

_START_S = 120.0  # time allowed for a worker to start: it imports JAX


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
        key = secrets.token_bytes(32)
        with Listener((cluster.host(), 0), authkey=key) as listener:
            yield functools.partial(Actor, listener, key)
    finally:
        cluster.close()


@final
class Actor:
    """A worker that runs as a Ray actor, on one core of some machine."""

    def __init__(self, listener: Listener, key: bytes) -> None:
        import ray

        env = {"env_vars": ONE_THREAD}
        kind: Any = ray.remote(_Serving)
        asked = {"num_cpus": 1, "scheduling_strategy": "SPREAD", "runtime_env": env}
        self._actor = kind.options(**asked).remote()
        self._serving = self._actor.serve.remote(listener.address, key)
        self.connection = _accepted(listener)

    def end(self) -> str:
        import ray

        self.connection.close()
        ray.kill(self._actor)
        return "on Ray"


class _Serving:
    """The remote side of `Actor`."""

    def serve(self, address: tuple[str, int], key: bytes) -> None:
        """Runs trials for the driver that listens at `address`, until it disconnects."""
        # Ray would print every warning; the sweep counts them instead.
        logging.getLogger("dbjax").setLevel(logging.ERROR)
        serve(Client(address, authkey=key))


def _accepted(listener: Listener) -> Connection:
    """Waits for the next worker to connect, and returns its connection."""
    found: list[Connection] = []
    waiting = threading.Thread(target=lambda: found.append(listener.accept()), daemon=True)
    waiting.start()
    waiting.join(_START_S)
    if not found:
        raise ValueError(
            f"Ray did not start a worker within {_START_S:g} s: reduce --jobs to its free CPUs"
        )
    assert isinstance(found[0], multiprocessing.connection.Connection)
    return found[0]
