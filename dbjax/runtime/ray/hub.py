"""The communication of a process: its own services, and its connections to other processes."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, final

from dbjax.runtime.context import DRIVER, Caller, current
from dbjax.runtime.futures import Future
from dbjax.runtime.ray.handshake import Address, admitted, reached
from dbjax.runtime.ray.segments import Arena
from dbjax.runtime.ray.wire import Ends, Identity, Message, Wire
from dbjax.runtime.recording import LiveObservations
from dbjax.runtime.threads.engine import Engine

Control = Callable[[Wire | None, Message], None]


@final
class Elsewhere:
    """The node of a caller in another process, which records the spans of its calls itself."""

    elsewhere = True

    def __init__(self, name: str, observer: bool) -> None:
        self.name, self.observer = name, observer


@final
class Hub:
    """Listens for calls from other processes, and makes connections to them.

    Args:
      engine: runs the coroutines and services of this process.
      me: the identity of this process; the hub adds its address.
      host: the host name or IP address at which the process listens.
      key: the secret key that all processes of the run know.
      control: see below.

    Attributes:
      engine: see above.
      services: the services of this process, by name.
      control: is called with messages that are neither calls nor replies, and with what happens to
        connections: ("lost", 0), ("suspect", 0, name, address), ("failed", 0, error, its cause).
      wait: waits until a future that the driver holds is done.
      arena: the shared memory that this process writes.
      address: where this process listens.
    """

    def __init__(
        self, engine: Engine, me: Identity, host: str, key: bytes, control: Control
    ) -> None:
        self.engine, self.control = engine, control
        self.arena = Arena()
        self.services = engine.services
        self.wait: Callable[[Future[Any]], None] = lambda future: None
        self._key = key
        self._listener = Listener((host, 0), backlog=128)
        self.address: Address = self._listener.address
        self._me = me._replace(address=self.address)
        self._wires: set[Wire] = set()
        self._closing = False
        self._accepting = threading.Thread(target=self._accept_all, daemon=True, name="accepts")
        self._accepting.start()

    def connect(self, address: Address, ends: Ends) -> Wire:
        """Returns a wire to the process at an address. It connects in the background."""
        return self._wire(lambda: reached(address, self._key), ends)

    def bury(self, address: Address) -> None:
        """Ends all connections to a process that is dead."""
        for wire in list(self._wires):
            if wire.peer is not None and wire.peer.address == address:
                wire.bury()
                self._wires.discard(wire)

    def close(self) -> None:
        """Closes all wires, and stops listening."""
        self._closing = True
        for wire in list(self._wires):
            wire.close()
        with contextlib.suppress(OSError):
            Client(self.address).close()  # so that `accept` returns
        self._accepting.join()
        self._listener.close()

    def failed(self, error: Exception) -> None:
        """Reports an error in a thread of a wire, where it would otherwise be lost."""
        self.control(None, ("failed", 0, *portable(error)))

    def _accept_all(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except OSError:
                continue
            if self._closing:
                connection.close()
                return
            ends = Ends(self._receive, self._refused, self._lost, self.failed)
            self._wire(functools.partial(admitted, connection, self._key), ends)

    def _wire(self, connect: Callable[[], Connection], ends: Ends) -> Wire:
        lost = lambda wire: self._forget(wire, ends.lost)  # noqa: E731
        wire = Wire(connect, self._me, self.arena, ends._replace(lost=lost))
        self._wires.add(wire)
        wire.start()
        return wire

    def _forget(self, wire: Wire, lost: Callable[[Wire], None]) -> None:
        if not wire.lends():
            self._wires.discard(wire)
        lost(wire)

    def _lost(self, wire: Wire) -> None:
        self.control(wire, ("lost", 0))

    def _receive(self, wire: Wire, message: Message) -> None:
        if message[0] == "call":
            self._serve(wire, *message[1:])
        elif message[0] == "unreadable" and message[1] == "call":
            wire.send(("error", message[2], *portable(message[3])))
        else:
            self.control(wire, message)

    def _serve(
        self,
        wire: Wire,
        call: int,
        name: str,
        source: tuple[str, str, bool, int],
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Serves a call in this thread, under the caller's label and its number of the call."""
        label, node, observer, number = source
        caller = DRIVER
        if label != DRIVER.label:
            caller = Caller(Elsewhere(node, observer), label, LiveObservations())
            caller.calls = number - 1
        current.caller = caller
        future: Future[Any] = self.services[name].take(method, args, kwargs)
        future.on_done(lambda: _answer(wire, call, future))

    def _refused(self, wire: Wire, message: Message, error: Exception) -> None:
        """Tells the caller why a reply cannot be sent."""
        if message[0] in ("reply", "error"):
            wire.send(("error", message[1], TypeError(f"the reply cannot be sent: {error}"), None))
        else:
            raise error


def _answer(wire: Wire, call: int, future: Future[Any]) -> None:
    try:
        value = future.result()
    except Exception as error:
        wire.send(("error", call, *portable(error)))
    else:
        wire.send(("reply", call, value), once=True)


def portable(error: BaseException) -> tuple[BaseException, BaseException | None]:
    """Returns an error and its cause, both in a form that can be pickled.

    The cause is separate, since pickle would drop it. An error that cannot be pickled is replaced
    by a RuntimeError with its text.
    """

    def checked(one: BaseException) -> BaseException:
        try:
            pickle.loads(pickle.dumps(one))
        except Exception:
            return RuntimeError(f"{type(one).__name__}: {one}")
        return one

    return checked(error), None if error.__cause__ is None else checked(error.__cause__)
