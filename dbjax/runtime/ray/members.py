"""The processes of a run, as the driver knows them: who is up, who has died, who has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import ray
from ray.exceptions import RayTaskError

from dbjax.runtime.interface import Future
from dbjax.runtime.ray.handle import Handles
from dbjax.runtime.ray.handshake import Address
from dbjax.runtime.ray.process import RayNode
from dbjax.runtime.ray.wire import Message, Wire
from dbjax.runtime.threads import ThreadsRuntime

Events = queue.SimpleQueue[tuple[Wire | None, Message]]
_AGAIN_S = 0.2


@dataclasses.dataclass(eq=False)
class _Member:
    node: RayNode
    end: Future[Any] | None
    incarnation: int = -1  # how often it has come back
    wire: Wire | None = None  # None: it is not there, or not yet
    address: Address | None = None
    gone_s: float = dataclasses.field(default_factory=time.monotonic)  # since when it is not there
    ready: bool = False
    stopped: bool = False


@final
class Members:
    """Takes what processes say about themselves.

    Args:
      ends: of the mains, by node.
      live: name -> Ray's reference to the life of that process.
      threads: of the driver: its clock, its trace.
    """

    def __init__(
        self,
        nodes: Mapping[str, RayNode],
        ends: Mapping[str, Future[Any]],
        live: Callable[[str], Any],
        handles: Handles,
        threads: ThreadsRuntime,
        events: Events,
    ) -> None:
        self._handles, self._threads, self._events = handles, threads, events
        self._engine = threads.engine
        self._live, self._machine = live, ray.get_runtime_context().get_node_id()
        self._members = {name: _Member(node, ends.get(name)) for name, node in nodes.items()}
        self._by_wire: dict[Wire, _Member] = {}
        self._running = self._ending = False
        self._lost: Exception | None = None
        for member in self._members.values():
            self._start(member)

    def missing(self) -> list[str]:
        """Names of those that are not there, or not ready."""
        return [name for name, member in self._members.items() if not member.ready]

    def silent(self, for_s: float) -> list[str]:
        """Names of those that have not been there so long; others may compile for longer."""
        now_s = time.monotonic()
        return [n for n, m in self._members.items() if m.wire is None and now_s - m.gone_s > for_s]

    def over(self) -> bool:
        """Whether all mains have ended, or an error was lost."""
        ends = [m.end for m in self._members.values() if m.end is not None]
        return self._lost is not None or all(end.done() for end in ends)

    def late(self) -> list[str]:
        """Names of those that live and have not stopped."""
        return [n for n, m in self._members.items() if m.wire is not None and not m.stopped]

    def kill(self, name: str) -> None:
        """Kills a node's process, if it lives; it is heard no more. Ray starts it again."""
        wire = self._members[name].wire
        if wire is None or wire.peer is None:
            return
        if wire.peer.machine == self._machine:
            with contextlib.suppress(ProcessLookupError):  # it is dead already
                os.kill(wire.peer.pid, signal.SIGKILL)
        wire.cut()  # so it ends itself

    def go(self) -> None:
        """All services are there: mains may start, and observers."""
        self._running = True
        self._handles.moved({name: member.address for name, member in self._members.items()})
        self._threads.start()
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
        if kind == "suspect":
            self._suspected(*rest)
            return
        if kind == "failed":
            raise _chained(*rest)
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
        elif kind == "unreadable":
            raise rest[-1]

    def _hello(self, wire: Wire, name: str, address: Address) -> None:
        member = self._members[name]
        if member.wire is not None:
            self._died(member)  # its return is the first sign of it
        member.incarnation += 1
        member.wire, member.address = wire, address
        member.ready, member.stopped = False, self._ending  # then it is not started
        self._by_wire[wire] = member
        with_main = member.end is not None and not member.end.done() and not self._ending
        incarnation, returned = (
            self._engine.incarnation + member.incarnation,
            member.incarnation > 0,
        )
        about = (with_main, self._directory(), self._saved(name))
        wire.send(("begin", 0, incarnation, returned, *about))

    def _ready(self, member: _Member) -> None:
        member.ready = True
        if self._running:  # it has come back
            if not self._ending:
                self._record(member, "returned")
                self._send_go(member)
            self._move(member)

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
        return {
            n: v for n, v in self._threads.latest_states.items() if f"{node}/".startswith(f"{n}/")
        }

    def _ended_badly(self, end: Future[Any], error: Exception, cause: BaseException | None) -> None:
        error.__cause__ = cause
        lost = not end.watched()
        end.set_error(error)
        if lost and self._lost is None:
            self._lost = error

    def _suspected(self, name: str, address: Address) -> None:
        """Somebody's wire to that life broke: whoever calls it is told that it died, so it must."""
        member = self._members[name]
        if member.address == address:
            self.kill(name)
            self._died(member)

    def _died(self, member: _Member) -> None:
        wire, member.wire, member.ready = member.wire, None, False
        member.gone_s = time.monotonic()
        address, member.address = member.address, None
        if wire is not None:
            del self._by_wire[wire]
        if not self._running:
            raise RuntimeError(f"the process of {member.node.name} died while it came up")
        if not self._ending:
            self._record(member, "died")
        self._handles.died(member.node.name, address)
        self._tell_others(member, ("died", 0, member.node.name, address))

    def _move(self, moved: _Member) -> None:
        directory = {moved.node.name: moved.address}
        self._handles.moved(directory)
        self._tell_others(moved, ("moved", 0, directory))

    def _tell_others(self, than: _Member, message: Message) -> None:
        for member in self._members.values():
            if member is not than and member.wire is not None:
                member.wire.send(message)

    def _record(self, member: _Member, event: str) -> None:
        if self._engine.trace is not None:
            self._engine.trace.record(member.node.name, self._engine.now_s(), {"event": event})

    def _start(self, member: _Member) -> None:
        """Has a process live, and Ray say when it dies: a lost machine breaks no connection."""

        def ended(done: Any) -> None:
            self._events.put((None, ("life ended", 0, member, done.exception())))

        self._live(member.node.name).future().add_done_callback(ended)

    def _life_ended(self, member: _Member, error: Exception | None) -> None:
        if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
            why = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"{member.node.name} did not come up: {why}") from error
        if member.wire is not None:
            self.kill(member.node.name)  # Ray may have lost no more than a connection
            self._died(member)
        # Ray starts the process again; until it has, this comes back at once.
        timer = threading.Timer(_AGAIN_S, self._start, [member])
        timer.daemon = True
        timer.start()


def _chained(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
