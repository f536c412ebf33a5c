"""Handles, by which a process calls services, wherever they run."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

from ray.exceptions import RayActorError

from dbjax.errors import NodeDied, one_line
from dbjax.runtime.context import DRIVER, current
from dbjax.runtime.futures import Future, ready
from dbjax.runtime.node_names import NodeKind, kind_of
from dbjax.runtime.ray.arrays import Route, packed
from dbjax.runtime.ray.segments import Arena, forget
from dbjax.runtime.threads.engine import Engine


class Peer(NamedTuple):
    """A process of the run, as the others know it.

    Attributes:
      name: the name of its node.
      incarnation: how often it has come back.
      actor: Ray's handle of it; None: it is dead, or it is the driver.
      machine: Ray's name of its machine; processes on the same machine share memory.
      memory: the owner of the shared memory that it writes.
    """

    name: str
    incarnation: int = -1
    actor: Any = None
    machine: str = ""
    memory: str = ""


class Origin(NamedTuple):
    """Where a call comes from.

    Attributes:
      process: the process that makes it, without its actor.
      label: the label of the caller.
      node: the name of the caller's node.
      observer: whether the caller is an observer.
      number: the caller's number of the call.
    """

    process: Peer
    label: str
    node: str
    observer: bool
    number: int


@dataclasses.dataclass(eq=False, frozen=True, slots=True)
class _Call:
    future: Future[Any]
    peer: Peer
    origin: Origin
    method: str
    arguments: tuple[Any, ...]
    sent_s: float


@final
class Peers:
    """What this process knows of the others, and its handles of their services.

    Attributes:
      me: this process, without its actor.
      engine: runs the coroutines and services of this process.
      wait: waits until a future that the driver holds is done.
      dtype: the dtype in which float32 arrays travel between replicas and services.
      arena: the shared memory that this process writes.
    """

    me: Peer
    engine: Engine

    def __init__(self) -> None:
        self.wait: Callable[[Future[Any]], object] = lambda future: None
        self.dtype = "float32"
        self.arena = Arena()
        self.replies: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._handles: dict[str, RayHandle] = {}
        self._known: dict[str, Peer] = {}

    def join(self, me: Peer, engine: Engine, tell: Callable[..., object]) -> None:
        """Makes calls possible.

        Args:
          me: see above.
          engine: see above.
          tell: is called with "suspect" and a peer that does not answer, or with "failed", an error
            that is otherwise lost, and its cause.
        """
        self.me, self.engine, self._tell = me, engine, tell
        threading.Thread(target=self._settle_all, daemon=True, name="replies").start()

    def suspect(self, peer: Peer) -> None:
        """Tells the driver, which alone says who is dead, that a process does not answer."""
        self._tell("suspect", peer._replace(actor=None))

    def get(self, name: str) -> RayHandle:
        """Returns the handle of the service of that name."""
        if name not in self._handles:
            made = self._handles.setdefault(name, RayHandle(name, self))
            made.moved(self.known(name))
        return self._handles[name]

    def known(self, name: str) -> Peer:
        """Returns what is known of the process of a node."""
        return self._known.get(name, Peer(name))

    def learn(self, news: Iterable[Peer]) -> None:
        """Takes notice of processes that have died or come back; old news changes nothing."""
        for peer in news:
            before = self.known(peer.name)
            if (before.incarnation, before.actor is None) >= (peer.incarnation, peer.actor is None):
                continue
            self._known[peer.name] = peer
            if before.actor is not None:
                self.arena.take_back(peer.name)
                forget(before.memory)
            if peer.name in self._handles:
                self._handles[peer.name].moved(peer)

    def is_dead(self, process: Peer) -> bool:
        """Returns whether an incarnation of a process is dead, as far as is known here."""
        known = self.known(process.name)
        return (known.incarnation, known.actor is None) >= (process.incarnation, True)

    def route(self, process: Peer, caller: str, *, keep: bool = False) -> Route:
        """Returns how messages for a process travel.

        Args:
          process: the process.
          caller: the name of the node that calls, or that is answered.
          keep: whether others will be sent the same arrays.
        """
        arena = self.arena if process.machine == self.me.machine else None
        dtype = self.dtype if kind_of(caller) is NodeKind.REPLICA else "float32"
        return Route(process.name, arena, dtype, keep)

    def close(self) -> None:
        """Ends the threads."""
        self.replies.put(None)
        for handle in self._handles.values():
            handle.close()

    def _settle_all(self) -> None:
        """Settles futures here, as whoever waits for them must not hold up a thread of Ray."""
        while (settle := self.replies.get()) is not None:
            try:
                settle()
            except Exception as error:
                self._tell("failed", *portable(error))
            del settle  # so that the memory of its reply can be released


here = Peers()  # those of a process that Ray has started, which is one node


def handle(name: str) -> RayHandle:
    """Returns this process's handle of that name; unpickling a handle calls this."""
    return here.get(name)


@final
class RayHandle:
    """A `Handle` of a service in this or in another process.

    It can be sent in a message. The process that receives it gets its own handle of that name.

    Args:
      name: the name of the service.
      peers: those of this process.
    """

    def __init__(self, name: str, peers: Peers) -> None:
        self.name, self._peers, self._peer = name, peers, Peer(name)
        self._lock = threading.Lock()
        self._open: dict[_Call, None] = {}
        self._hoping: list[Future[None]] = []
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None

    def __reduce__(self) -> Any:
        return handle, (self.name,)

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        peers, name, caller = self._peers, method.__name__, current.caller
        services = peers.engine.services
        if self.name in services:
            local: Future[Any] = services[self.name].take(name, args, kwargs)
            return local
        future: Future[Any] = Future((name, self.name))
        if peers.engine.over():
            return future
        node = caller.node
        origin = Origin(peers.me, caller.label, node.name, node.observer, caller.number())
        with self._lock:
            call = _Call(future, self._peer, origin, name, (args, kwargs), peers.engine.now_s())
            alive = self._peer.actor is not None
            if alive:
                self._open[call] = None
                self._queue.put(call)
                if self._sender is None:
                    self._sender = threading.Thread(target=self._send_all, daemon=True, name="send")
                    self._sender.start()
        if not alive:
            self._die(call)
        if caller is DRIVER:  # which cannot await
            peers.wait(future)
        return future

    def up(self) -> Future[None]:
        with self._lock:
            if self._peer.actor is not None or self.name in self._peers.engine.services:
                return ready(None)
            future: Future[None] = Future(("return", self.name))
            self._hoping.append(future)
        if current.caller is DRIVER:
            self._peers.wait(future)
        return future

    def moved(self, peer: Peer) -> None:
        """Takes notice that the service's process has died or come back; open calls then fail."""
        hoping: list[Future[None]] = []
        with self._lock:
            self._peer = peer
            dead, self._open = self._open, {}
            if peer.actor is not None:
                hoping, self._hoping = self._hoping, []
        for call in dead:
            self._die(call)
        for future in hoping:
            future.set_result(None)

    def close(self) -> None:
        """Ends the thread that sends."""
        self._queue.put(None)

    def _send_all(self) -> None:
        """Sends calls in order. A call whose arrays are still being computed waits here."""
        peer, number = None, 0
        while (call := self._queue.get()) is not None:
            if call.peer is not peer:
                peer, number = call.peer, 0
            if call not in self._open:  # the process has died meanwhile
                continue
            try:
                route = self._peers.route(call.peer, call.origin.node)
                message = packed((call.method, *call.arguments), route)
                sent = call.peer.actor.call.remote(call.origin, number, peer.incarnation, message)
            except Exception as error:
                self._fail(call, TypeError(f"{self._named(call)} cannot be sent: {error}"))
                continue
            sent.future().add_done_callback(functools.partial(self._hear, call, number))
            number += 1
            del call, message, sent

    def _hear(self, call: _Call, number: int, sent: Any) -> None:
        self._peers.replies.put(lambda: self._settle(call, number, sent))

    def _settle(self, call: _Call, number: int, sent: Any) -> None:
        """Settles the future of a call; it stays open if the process may have died."""
        error = sent.exception()
        if isinstance(error, RayActorError) or (error is None and sent.result() is None):
            self._peers.suspect(call.peer)
            return
        if error is not None:  # Ray could not serialize something, at one end or the other
            call.peer.actor.skip.remote(call.origin, number)
            kind = RuntimeError if "duplicate" in str(error).lower() else TypeError
            self._fail(call, kind(f"{self._named(call)} cannot be sent: {one_line(error)}"))
            return
        error, cause, value = sent.result()
        if error is not None:
            error.__cause__ = cause
            self._fail(call, error)
        elif self._close(call):
            engine = self._peers.engine
            if engine.trace is not None:
                engine.trace.span(call.origin.node, call.method, call.sent_s, engine.now_s())
            call.future.set_result(value)

    def _close(self, call: _Call) -> bool:
        """Returns whether a call was still open; it is not any more."""
        with self._lock:
            return self._open.pop(call, self) is None

    def _fail(self, call: _Call, error: Exception) -> None:
        if self._close(call):
            self._peers.engine.failed.append(call.future)
            call.future.set_error(error)

    def _die(self, call: _Call) -> None:
        call.future.set_error(NodeDied(f"{self.name} died before it answered {call.method}"))

    def _named(self, call: _Call) -> str:
        return f"{self.name}.{call.method}: its arguments or its reply"


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
