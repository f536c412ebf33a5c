"""Handles, by which a process calls services, wherever they run."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

from dbjax.errors import NodeDied
from dbjax.runtime.context import DRIVER, current
from dbjax.runtime.futures import Future, ready
from dbjax.runtime.ray.handshake import Address
from dbjax.runtime.ray.hub import Hub
from dbjax.runtime.ray.wire import Ends, Message, Wire


class _Sent(NamedTuple):
    """A call that has not been answered yet."""

    future: Future[Any]
    node: str
    method: str
    sent_s: float


@final
class RayHandle:
    """A `Handle` of a service in this or in another process.

    It can be sent in a message. The process that receives it gets its own handle of that name.

    Args:
      name: the name of the service.
      hub: the hub of this process; None: it is set before the run begins.
    """

    def __init__(self, name: str, hub: Hub | None = None) -> None:
        self.name, self.hub = name, hub
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._sent: dict[int, _Sent] = {}
        self._address: Address | None = None
        self._wire: Wire | None = None
        self._hoping: list[Future[None]] = []

    def __reduce__(self) -> Any:
        return handle, (self.name,)

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        name, hub, caller = method.__name__, self._home(), current.caller
        if self.name in hub.services:
            local: Future[Any] = hub.services[self.name].take(name, args, kwargs)
            return local
        future: Future[Any] = Future((name, self.name))
        if hub.engine.over():
            return future
        source = (caller.label, caller.node.name, caller.node.observer, caller.number())
        with self._lock:
            wire = self._connected()
            if wire is not None:
                call = next(self._numbers)
                self._sent[call] = _Sent(future, caller.node.name, name, hub.engine.now_s())
                wire.send(("call", call, self.name, source, name, args, kwargs))
        if wire is None:
            self._die(future, name)
        if caller is DRIVER:  # which cannot await
            hub.wait(future)
        return future

    def up(self) -> Future[None]:
        with self._lock:
            if self._address is not None or self.name in self._home().services:
                return ready(None)
            future: Future[None] = Future(("return", self.name))
            self._hoping.append(future)
        if current.caller is DRIVER:
            self._home().wait(future)
        return future

    def moved(self, address: Address | None) -> None:
        """Sets the address of the service's process, as the driver says; None: it has died.

        Calls that the former process has not answered fail.
        """
        with self._lock:
            if address == self._address:
                return
            self._wire, self._address = None, address
            sent, self._sent = self._sent, {}  # these are never answered; later ones may be
            hoping: list[Future[None]] = []
            if address is not None:
                hoping, self._hoping = self._hoping, []
        for one in sent.values():
            self._die(one.future, one.method)
        for future in hoping:
            future.set_result(None)

    def _home(self) -> Hub:
        if self.hub is None:
            raise RuntimeError(f"{self.name} is called before the run has begun")
        return self.hub

    def _connected(self) -> Wire | None:
        if self._wire is None and self._address is not None:
            hub = self._home()
            ends = Ends(self._receive, self._refused, self._broke, hub.failed)
            self._wire = hub.connect(self._address, ends)
        return self._wire

    def _receive(self, wire: Wire, message: Message) -> None:
        _, call, *rest = message if message[0] != "unreadable" else message[1:]
        with self._lock:
            sent = self._sent.pop(call, None)
        if sent is None:
            return
        if message[0] != "reply":
            error, cause = (*rest, None)[:2]
            error.__cause__ = cause
            self._fail(sent.future, error)
            return
        engine = self._home().engine
        if engine.trace is not None:
            engine.trace.span(sent.node, sent.method, sent.sent_s, engine.now_s())
        sent.future.set_result(rest[0])

    def _refused(self, wire: Wire, message: Message, error: Exception) -> None:
        with self._lock:
            sent = self._sent.pop(message[1], None)
        if sent is not None:
            self._fail(sent.future, error)

    def _fail(self, future: Future[Any], error: Exception) -> None:
        self._home().engine.failed.append(future)
        future.set_error(error)

    def _broke(self, wire: Wire) -> None:
        """Reports the broken connection to the driver; the open calls do not fail yet.

        Only the driver says which process is dead, after it has made sure of that.
        """
        if wire is self._wire:
            self._home().control(None, ("suspect", 0, self.name, self._address))

    def _die(self, future: Future[Any], method: str) -> None:
        future.set_error(NodeDied(f"{self.name} died before it answered {method}"))


@final
class Handles:
    """The handles of a process, one for each name."""

    def __init__(self) -> None:
        self._made: dict[str, RayHandle] = {}
        self._directory: dict[str, Address | None] = {}
        self.hub: Hub | None = None

    def get(self, name: str) -> RayHandle:
        """Returns the handle of that name; makes it if there is none."""
        if name not in self._made:
            made = self._made[name] = RayHandle(name, self.hub)
            if name in self._directory:
                made.moved(self._directory[name])
        return self._made[name]

    def settle(self, hub: Hub) -> None:
        """Makes all handles use the hub of this process from now on."""
        self.hub = hub
        for made in self._made.values():
            made.hub = hub

    def moved(self, directory: Mapping[str, Address | None]) -> None:
        """Sets the addresses of services that have moved; None: the service's process has died."""
        self._directory |= directory
        for name, address in directory.items():
            if name in self._made:
                self._made[name].moved(address)

    def died(self, name: str, address: Address | None) -> None:
        """Ends all connections to a dead process, which had that address, and fails open calls."""
        if address is not None and self.hub is not None:
            self.hub.bury(address)
        self.moved({name: None})


here_are = Handles()  # the handles of a process that Ray has started, which is one node


def handle(name: str) -> RayHandle:
    """Returns this process's handle of that name; unpickling a handle calls this."""
    return here_are.get(name)


@final
class Anywhere(dict[str, Any]):
    """Services by name: those of this process themselves, and handles of all others."""

    def __init__(self, handles: Handles) -> None:
        super().__init__()
        self._handles = handles

    def __missing__(self, name: str) -> RayHandle:
        return self._handles.get(name)
