"""Handles, by which a process calls services, wherever they run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

from ray.exceptions import RayTaskError

from dbjax.errors import NodeDied, one_line
from dbjax.runtime.context import DRIVER, Caller, current, number_call, number_wait
from dbjax.runtime.futures import Future
from dbjax.runtime.node_names import NodeKind, kind_of
from dbjax.runtime.ray.messages import Route, decode, encode, sendable
from dbjax.runtime.ray.segments import Arena, forget
from dbjax.runtime.threads.engine import Engine


class Peer(NamedTuple):
    """A process of the run, as the others know it."""

    name: str  # of its node
    incarnation: int = -1  # how often it has come back
    actor: Any = None  # Ray's handle of it; None: it is dead, or it is the driver
    machine: str = ""  # Ray's name of it; processes on the same machine share memory
    memory: str = ""  # the owner of the shared memory that it writes

    def age(self) -> tuple[int, bool]:
        """Returns what is larger in later news of the same process."""
        return self.incarnation, self.actor is None

    def reader(self) -> str:
        """Returns the name of this incarnation as a reader of shared memory."""
        return f"{self.name} {self.incarnation}"


class Origin(NamedTuple):
    """Where a call comes from."""

    process: Peer  # without its actor
    label: str  # of the caller
    node: str  # the name of the caller's node
    observer: bool  # whether the caller is an observer
    incarnation: int  # of the caller
    number: int  # the caller's number of the call
    attempt: int  # how often the caller had made the call before


@dataclasses.dataclass(eq=False, frozen=True, slots=True)
class _Call:
    caller: Caller
    future: Future[Any]
    peer: Peer
    origin: Origin
    method: str
    arguments: tuple[Any, ...]
    sent_s: float

    def answer(self, settle: Callable[[], None], *, died: bool = False) -> None:
        """Gives the caller the answer, by way of `settle`."""
        self.caller.answered(self.origin.number, self.origin.attempt, settle, died=died)


@final
class Peers(dict[str, Any]):
    """All services by name: those of this process themselves, and handles of all others.

    Attributes:
      me: this process, without its actor; of no incarnation until the driver has given it its node.
      engine: runs the coroutines and services of this process.
      tell: tells the driver of an event (see `process.Batch`).
      wait: waits until a future that the driver holds is done.
      flush: writes the event log of this process, which must precede every message.
      dtype: the dtype in which float32 arrays travel between replicas and services.
      arena: the shared memory that this process writes.
    """

    engine: Engine
    tell: Callable[..., object]

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[Future[Any]], object] = lambda future: None
        self.flush: Callable[[], object] = lambda: None
        self.me, self.dtype, self.arena = Peer(""), "float32", Arena()
        self._replies = ThreadPoolExecutor(1, "replies")

    def __missing__(self, name: str) -> RayHandle:
        handle: RayHandle = self.setdefault(name, RayHandle(name, self))
        return handle

    def learn(self, news: Iterable[Peer]) -> None:
        """Takes notice of processes that have died or come back; old news changes nothing."""
        for peer in news:
            if peer.name != self.me.name:
                self[peer.name].learn(peer)

    def is_dead(self, process: Peer) -> bool:
        """Returns whether an incarnation of a process is dead, as far as is known here."""
        known: Peer = self[process.name].peer
        return known.age() >= (process.incarnation, True)

    def route(self, process: Peer, caller: str) -> Route:
        """Returns how calls to a process, or replies to it, travel, by the name of their caller."""
        arena = self.arena if process.machine == self.me.machine else None
        dtype = self.dtype if kind_of(caller) is NodeKind.REPLICA else "float32"
        return Route(process.reader(), arena, dtype)

    def settle(self, settle: Callable[..., object], *args: Any) -> None:
        """Settles a future in a thread that may be held up by who waits, as Ray's must not be."""

        def guarded() -> None:
            try:
                settle(*args)
            except Exception as error:
                self.tell("failed", sendable(error))

        with contextlib.suppress(RuntimeError):  # the run is over
            self._replies.submit(guarded)

    def close(self) -> None:
        """Ends the threads."""
        for handle in self.values():
            handle.close()
        self._replies.shutdown(wait=False, cancel_futures=True)


PEERS = Peers()  # of a process that Ray has started, which is one node


def handle(name: str) -> RayHandle:
    """Returns a handle of that name in this process; unpickling a handle calls this."""
    known = PEERS[name]
    return known if isinstance(known, RayHandle) else RayHandle(name, PEERS)


@final
class RayHandle:
    """A `Handle` of a service in this or in another process.

    It can be sent in a message. The process that receives it gets its own handle of that name.

    Attributes:
      name: the name of the service.
      peer: the process in which the service runs.
    """

    def __init__(self, name: str, peers: Peers) -> None:
        self.name, self._peers, self.peer = name, peers, Peer(name)
        self._lock = threading.Lock()
        self._open: dict[_Call, None] = {}
        self._awaiting_return: list[Callable[[], None]] = []
        self._sender = ThreadPoolExecutor(1, "send")  # starts a thread when it is used
        self._sent: tuple[Peer, int] = self.peer, 0  # how many calls the latest peer was sent

    def __reduce__(self) -> Any:
        return handle, (self.name,)

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        peers, name, caller = self._peers, method.__name__, current.caller
        service = peers[self.name]
        if service is not self:  # it runs in this process
            served: Future[Any] = service.take(name, args, kwargs)
            return served
        future: Future[Any] = Future((name, self.name))
        if peers.engine.over():
            return future
        node = caller.node
        source = peers.me, caller.label, node.name, node.observer, caller.incarnation
        origin, now_s = Origin(*source, *number_call(caller)), peers.engine.now_s()
        with self._lock:
            call = _Call(caller, future, self.peer, origin, name, (args, kwargs), now_s)
            alive = self.peer.actor is not None
            if alive:
                self._open[call] = None
                self._sender.submit(self._send, call)
        if not alive:
            self._die(call)
        if caller is DRIVER:  # which cannot await
            peers.wait(future)
        return future

    def up(self) -> Future[None]:
        caller, future = current.caller, Future[None](("return", self.name))
        settle = functools.partial(future.set_result, None)
        answer = functools.partial(caller.answered, *number_wait(caller), settle)
        with self._lock:
            alive = self.peer.actor is not None or self._peers[self.name] is not self
            if not alive:
                self._awaiting_return.append(answer)
        if alive:
            answer()
        if caller is DRIVER:
            self._peers.wait(future)
        return future

    def learn(self, peer: Peer) -> None:
        """Takes notice that the process has died or come back; its open calls then fail."""
        awaiting: list[Callable[[], None]] = []
        with self._lock:
            before = self.peer
            if before.age() >= peer.age():
                return
            self.peer = peer
            dead, self._open = self._open, {}
            if peer.actor is not None:
                awaiting, self._awaiting_return = self._awaiting_return, []
        for gone in (before,) if peer.actor is not None else (before, peer):
            self._peers.arena.take_back(gone.reader())
            forget(gone.memory)
        for call in dead:
            self._die(call)
        for answer in awaiting:
            answer()

    def close(self) -> None:
        """Ends the thread that sends."""
        self._sender.shutdown(wait=False, cancel_futures=True)

    def _send(self, call: _Call) -> None:
        """Sends a call. It waits here for its arrays, and then all later calls wait too."""
        if call not in self._open:  # the process has died meanwhile
            return
        peer, number = self._sent if self._sent[0] is call.peer else (call.peer, 0)
        try:
            route = self._peers.route(peer, call.origin.node)
            message = encode((call.method, *call.arguments), route)
            self._peers.flush()
            sent = peer.actor.call.remote(call.origin, number, peer.incarnation, message)
        except Exception as error:
            why = f"its arguments cannot be sent: {one_line(error)}"
            self._fail(call, TypeError(f"{self.name}.{call.method}: {why}"))
            return
        self._sent = peer, number + 1
        heard = functools.partial(self._peers.settle, self._settle, call)
        sent.future().add_done_callback(heard)

    def _settle(self, call: _Call, sent: Any) -> None:
        """Settles the future of a call; it stays open if the process may have died."""
        error = sent.exception()
        if isinstance(error, RayTaskError):
            raise error
        if error is not None or sent.result() is None:
            self._peers.tell("suspect", call.peer._replace(actor=None))
            return
        error, value = decode(sent.result())
        if error is not None:
            self._fail(call, error)
        elif self._close(call):
            engine = self._peers.engine
            if engine.trace is not None:
                engine.trace.span(call.origin.node, call.method, call.sent_s, engine.now_s())
            call.answer(functools.partial(call.future.set_result, value))

    def _close(self, call: _Call) -> bool:
        """Returns whether a call was still open; it is not any more."""
        with self._lock:
            return self._open.pop(call, self) is None

    def _fail(self, call: _Call, error: Exception) -> None:
        if self._close(call):
            self._peers.engine.failed.append(call.future)
            call.answer(functools.partial(call.future.set_error, error))

    def _die(self, call: _Call) -> None:
        error = NodeDied(f"{self.name} died before it answered {call.method}")
        call.answer(functools.partial(call.future.set_error, error), died=True)
