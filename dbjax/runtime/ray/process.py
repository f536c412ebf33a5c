"""The process of one node, which Ray starts, and starts again when it has died."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import ray

from dbjax.runtime.event_log import EventLog
from dbjax.runtime.futures import Future
from dbjax.runtime.ray.codec import unpack_with
from dbjax.runtime.ray.handle import Anywhere, here_are
from dbjax.runtime.ray.handshake import Address
from dbjax.runtime.ray.hub import Hub, portable
from dbjax.runtime.ray.reports import Reports
from dbjax.runtime.ray.wire import Ends, Identity, Message, Wire
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Trace

LOOPBACK = "127.0.0.1"
Start = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # a function, its arguments


class RayNode(NamedTuple):
    """What runs on a node.

    Attributes:
      name: the name of the node.
      service: makes its service; None: the node has none.
      main: makes its coroutine; None: the node has none.
      state_name: the name under which the service's state is checkpointed; None: it is not.
    """

    name: str
    service: Start | None = None
    main: Start | None = None
    state_name: str | None = None


class Settings(NamedTuple):
    """The settings that all processes of a run share.

    Attributes:
      driver: where the driver listens.
      key: the secret key by which processes authenticate each other.
      seed: the seed of the run.
      max_spans: the largest number of spans that a process collects.
      logs: whether there is an event log.
      alone: whether there is only one replica.
      jax: options of `jax.config`, by name.
    """

    driver: Address
    key: bytes
    seed: int
    max_spans: int
    logs: bool
    single_replica: bool
    jax: dict[str, Any]


@final
class Process:
    """Runs a node's service and coroutine in its threads, when the driver says so.

    Args:
      name: the name of the node.
      settings: the settings that all processes share.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        for option, value in settings.jax.items():
            jax.config.update(option, value)  # before jax starts, as the number of devices must be
        trace = Trace(max_spans=settings.max_spans)
        self._reports = Reports(trace, self._report)
        log = EventLog(self._reports.lines.append) if settings.logs else None
        self._log = log
        self._threads = ThreadsRuntime(seed=settings.seed, trace=trace, log=log)
        self._engine = self._threads.engine
        self._engine.services, self._engine.single_replica = (
            Anywhere(here_are),
            settings.single_replica,
        )
        me = Identity(name, ray.get_runtime_context().get_node_id(), os.getpid())
        host = settings.driver[0]
        if host != LOOPBACK:
            host = ray.util.get_node_ip_address()
        self._hub = here_are.hub = Hub(self._engine, me, host, settings.key, self._tell)
        self._settings, self._unreached = settings, threading.Event()
        ends = Ends(self._told, self._refused, self._alone, self._hub.failed)
        self._driver = self._hub.connect(settings.driver, ends)

    def live(self, body: bytes, of_jax: list[bool], arrays: list[Any]) -> None:
        """Tells the driver that the process is up, and never returns; fails when the process dies.

        Args:
          body: the node, encoded by `codec.pack_code`.
          of_jax: which of its arrays are jax arrays.
          arrays: references to the arrays in Ray's object store.

        Raises:
          ConnectionError: the driver cannot be reached.
        """
        self._node: RayNode = unpack_with(body, of_jax, ray.get(arrays))
        self._driver.send(("hello", 0, self._node.name, self._hub.address))
        self._unreached.wait()
        raise ConnectionError("the driver does not answer at {}:{}".format(*self._settings.driver))

    def _told(self, wire: Wire, message: Message) -> None:
        try:
            self._do(*message)
        except Exception as error:
            self._fail(error)

    def _do(self, kind: str, _: int, *rest: Any) -> None:
        if kind == "begin":
            self._begin(*rest)
        elif kind == "go":
            self._go(*rest)
        elif kind == "moved":
            here_are.moved(*rest)
        elif kind == "died":
            here_are.died(*rest)
        elif kind == "stop":
            self._stop()
        else:
            raise RuntimeError(f"{self._node.name} does not understand {kind}: {rest}")

    def _begin(
        self,
        incarnation: int,
        returned: bool,
        with_main: bool,
        directory: dict[str, Address | None],
        states: dict[str, Any],
    ) -> None:
        """Makes the service and the coroutine, before anything can call the service."""
        here_are.moved(directory)
        self._engine.incarnation, self._engine.returned = incarnation, returned
        self._threads.latest_states = states
        name, service, main, state_name = self._node
        if service is not None:
            make, args, kwargs = service
            if state_name is None:
                self._threads.serve(name, make, *args, **kwargs)
            else:
                self._threads.serve_restorable(name, state_name, make, *args)
        if main is not None and with_main:
            function, args, kwargs = main
            ended = self._threads.spawn(name, function, *args, **kwargs)
            ended.on_done(functools.partial(self._ended, ended))
        self._threads.compile_ahead()
        self._driver.send(("ready", 0))

    def _go(self, now_s: float, directory: dict[str, Address | None]) -> None:
        here_are.moved(directory)
        self._threads.start(now_s)
        self._reports.start()

    def _ended(self, ended: Future[Any]) -> None:
        try:
            self._driver.send(("ended", 0, ended.result()))
        except Exception as error:
            self._driver.send(("ended badly", 0, *portable(error)))

    def _stop(self) -> None:
        error: Exception | None = None
        try:
            self._threads.finish()
        except Exception as lost:
            error = lost
        if self._log is not None:
            self._log.flush()
        self._reports.stop()
        self._driver.send(("stopped", 0, *(portable(error) if error else (None, None))))

    def _fail(self, error: Exception) -> None:
        self._driver.send(("failed", 0, *portable(error)))

    def _tell(self, wire: Wire | None, message: Message) -> None:
        """Forwards the hub's messages to the driver, except that a caller's connection is lost."""
        if message[0] != "lost":
            self._driver.send(message)

    def _report(self, rows: list[Any], spans: list[Any], lines: str) -> None:
        self._driver.send(("report", 0, rows, spans, lines))

    def _refused(self, wire: Wire, message: Message, error: Exception) -> None:
        self._fail(TypeError(f"{self._node.name} cannot send its {message[0]}: {error}"))

    def _alone(self, wire: Wire) -> None:
        """Ends this process, since one that loses the driver counts as dead for all others."""
        if wire.peer is not None:
            os._exit(1)
        self._unreached.set()
