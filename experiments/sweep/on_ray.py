"""Workers on the machines that Ray knows.

Ray places them and notices when they die. They connect to the driver, and what is said goes over
that connection, as with processes.
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

_START_S = 120.0  # for a worker to come up: it imports JAX


@contextlib.contextmanager
def actors(address: str) -> Iterator[Callable[[], Worker]]:
    """Gives a function that starts a worker on the cluster of that address.

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
    """A worker somewhere, on one core."""

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
    """The actor itself."""

    def serve(self, address: tuple[str, int], key: bytes) -> None:
        logging.getLogger("dbjax").setLevel(logging.ERROR)  # Ray shows it; the sweep counts it
        serve(Client(address, authkey=key))


def _accepted(listener: Listener) -> Connection:
    """The next worker that connects."""
    found: list[Connection] = []
    waiting = threading.Thread(target=lambda: found.append(listener.accept()), daemon=True)
    waiting.start()
    waiting.join(_START_S)
    if not found:
        raise ValueError(
            f"Ray has not started a worker within {_START_S:g} s: --jobs is more than its free CPUs"
        )
    assert isinstance(found[0], multiprocessing.connection.Connection)
    return found[0]
