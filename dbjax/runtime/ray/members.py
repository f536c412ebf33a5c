"""The processes of a run, as the driver knows them: who is up, who has died, who has ended."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, final

import ray
from ray.exceptions import RayTaskError

from dbjax.runtime.base import Future
from dbjax.runtime.ray.handle import Handles
from dbjax.runtime.ray.hub import Address
from dbjax.runtime.ray.process import Node
from dbjax.runtime.ray.wire import Message, Wire
from dbjax.runtime.threads import ThreadsRuntime

Events = queue.SimpleQueue[tuple[Wire | None, Message]]
_AGAIN_S = 0.2


@dataclasses.dataclass(eq=False)
class _Member:
    node: Node
    end: Future[Any] | None
    life: int = -1  # how often it has come back
    wire: Wire | None = None  # None: it is not there, or not yet
    address: Address | None = None
    ready: bool = False
    stopped: bool = False


@final
class Members:
    """Takes what processes say about themselves.

    Args:
      ends: of the mains, by node.
      live: name -> Ray's reference to the life of that process.
      engine: of the driver: its clock, its trace.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        ends: Mapping[str, Future[Any]],
        live: Callable[[str], Any],
        handles: Handles,
        engine: ThreadsRuntime,
        events: Events,
    ) -> None:
        self._handles, self._engine, self._events = handles, engine, events
        self._live, self._machine = live, ray.get_runtime_context().get_node_id()
        self._members = {name: _Member(node, ends.get(name)) for name, node in nodes.items()}
        self._by_wire: dict[Wire, _Member] = {}
        self._running = self._ending = False
        self._lost: Exception | None = None
        for member in self._members.values():
            self._start(member)

    def ready(self) -> bool:
        return all(member.ready for member in self._members.values())

    def stopped(self) -> bool:
        return all(m.stopped or m.wire is None for m in self._members.values())

    def over(self) -> bool:
        """Whether all mains have ended, or an error was lost."""
        ends = [m.end for m in self._members.values() if m.end is not None]
        return self._lost is not None or all(end.done() for end in ends)

    def late(self) -> list[str]:
        return [n for n, m in self._members.items() if not (m.stopped if self._ending else m.ready)]

    def pid_here(self, name: str) -> int | None:
        """Of a node's process, if it is on the driver's machine, and there."""
        wire = self._members[name].wire
        peer = wire.peer if wire is not None else None
        return peer.pid if peer is not None and peer.machine == self._machine else None

    def go(self) -> None:
        """All services are there: mains may start, and observers."""
        self._running = True
        self._handles.moved({name: member.address for name, member in self._members.items()})
        self._engine.start()
        for member in self._members.values():
            self._send_go(member)

    def stop(self) -> None:
        self._ending = True
        for member in self._members.values():
            if member.wire is not None:
                member.wire.send(("stop", 0))

    def raise_lost(self) -> None:
        """The first error that nobody awaited."""
        if self._lost is not None:
            raise self._lost
        for member in self._members.values():
            end = member.end
            if end is not None and end.done() and end.error() is not None and not end.awaited:
                end.result()

    def hear(self, wire: Wire | None, message: Message) -> None:
        """One message of one process.

        Raises:
          Exception: one that ends the run at once.
        """
        kind, _, *rest = message
        if kind == "hello" and wire is not None:
            self._hello(wire, *rest)
            return
        if kind == "life ended":
            self._life_ended(*rest)
            return
        member = self._by_wire.get(wire) if wire is not None else None
        if member is None or member.wire is not wire:
            return  # of a life that is over
        if kind == "ready":
            self._ready(member)
        elif kind == "ended" and member.end is not None:
            member.end.set_result(rest[0])
        elif kind == "ended badly" and member.end is not None:
            self._ended_badly(member.end, *rest)
        elif kind == "stopped":
            member.stopped = True
            if rest[0] is not None and self._lost is None:
                self._lost = _chained(*rest)
        elif kind == "lost":
            self._died(member)
        elif kind in ("failed", "unreadable"):
            raise _chained(*rest[-2:]) if kind == "failed" else rest[-1]

    def _hello(self, wire: Wire, name: str, address: Address) -> None:
        member = self._members[name]
        if member.wire is not None:
            self._died(member)  # its return is the first sign of it
        member.life += 1
        member.wire, member.address, member.ready = wire, address, False
        self._by_wire[wire] = member
        with_main = member.end is not None and not member.end.done()
        life, returned = self._engine.incarnation + member.life, member.life > 0
        about = (with_main, self._directory(), self._saved(name))
        wire.send(("begin", 0, life, returned, *about))

    def _ready(self, member: _Member) -> None:
        member.ready = True
        if self._running:  # it has come back
            if not self._ending:
                self._record(member, "returned")
                self._send_go(member)
            self._move(member, member.address)

    def _send_go(self, member: _Member) -> None:
        assert member.wire is not None
        member.wire.send(("go", 0, self._engine.now_s(), self._directory()))

    def _directory(self) -> dict[str, Address | None]:
        """Who lives where; before the run begins, nobody can be called."""
        if not self._running:
            return {}
        return {name: m.address if m.ready else None for name, m in self._members.items()}

    def _saved(self, node: str) -> dict[str, Any]:
        """What the last checkpoint holds of a node's services."""
        return {n: v for n, v in self._engine.saved.items() if f"{node}/".startswith(f"{n}/")}

    def _ended_badly(self, end: Future[Any], error: Exception, cause: BaseException | None) -> None:
        error.__cause__ = cause
        lost = not end.watched()
        end.set_error(error)
        if lost and self._lost is None:
            self._lost = error

    def _died(self, member: _Member) -> None:
        wire, member.wire, member.ready, member.address = member.wire, None, False, None
        if wire is not None:
            del self._by_wire[wire]
        if not self._running:
            raise RuntimeError(f"the process of {member.node.name} died while it came up")
        if not self._ending:
            self._record(member, "died")
        self._move(member, None)

    def _move(self, moved: _Member, address: Address | None) -> None:
        directory = {moved.node.name: address}
        self._handles.moved(directory)
        for member in self._members.values():
            if member is not moved and member.wire is not None:
                member.wire.send(("moved", 0, directory))

    def _record(self, member: _Member, event: str) -> None:
        if self._engine.trace is not None:
            self._engine.trace.record(member.node.name, self._engine.now_s(), {"event": event})

    def _start(self, member: _Member) -> None:
        """Has a process live, and Ray say when it dies: a lost machine breaks no connection."""

        def ended(done: Any) -> None:
            self._events.put((None, ("life ended", 0, member, done.exception())))

        self._live(member.node.name).future().add_done_callback(ended)

    def _life_ended(self, member: _Member, error: Exception | None) -> None:
        if isinstance(error, RayTaskError):
            raise RuntimeError(f"{member.node.name} did not come up: {error}") from error
        if member.wire is not None:
            self._died(member)
        # Ray starts the process again; until it has, this comes back at once.
        timer = threading.Timer(_AGAIN_S, self._start, [member])
        timer.daemon = True
        timer.start()


def _chained(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
