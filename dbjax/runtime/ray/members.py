"""The driver's view of the processes of a run: which are up, have died, or have ended."""

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
    incarnation: int = -1  # how often it has come back; -1: it has not been up yet
    wire: Wire | None = None  # None: it is down, or not up yet
    address: Address | None = None
    gone_s: float = dataclasses.field(default_factory=time.monotonic)  # since when it is down
    ready: bool = False
    stopped: bool = False


@final
class Members:
    """Tracks the processes of a run by the messages that they send.

    Args:
      nodes: the nodes, by name.
      ends: the futures of the coroutines that run on nodes, by the node's name.
      live: a function from the name of a node to Ray's reference to its running process.
      handles: the driver's handles.
      threads: the driver's threads runtime, with its clock and its trace.
      events: the queue from which the driver takes messages.
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
        """Returns the names of the nodes whose processes are down, or not ready yet."""
        return [name for name, member in self._members.items() if not member.ready]

    def silent(self, for_s: float) -> list[str]:
        """Returns the names of the nodes whose processes have been down for so many seconds.

        A process that is up may take longer to become ready, since it compiles.
        """
        now_s = time.monotonic()
        return [n for n, m in self._members.items() if m.wire is None and now_s - m.gone_s > for_s]

    def over(self) -> bool:
        """Returns whether all coroutines have ended, or nobody awaited an error."""
        ends = [m.end for m in self._members.values() if m.end is not None]
        return self._lost is not None or all(end.done() for end in ends)

    def late(self) -> list[str]:
        """Returns the names of the nodes whose processes are up and have not stopped."""
        return [n for n, m in self._members.items() if m.wire is not None and not m.stopped]

    def kill(self, name: str) -> None:
        """Kills a node's process, if it is up. Its messages are ignored; Ray starts it again."""
        wire = self._members[name].wire
        if wire is None or wire.peer is None:
            return
        if wire.peer.machine == self._machine:
            with contextlib.suppress(ProcessLookupError):  # it has died already
                os.kill(wire.peer.pid, signal.SIGKILL)
        wire.cut()  # a process that loses the driver ends itself

    def go(self) -> None:
        """Starts all coroutines and observers, now that all services are ready."""
        self._running = True
        self._handles.moved({name: member.address for name, member in self._members.items()})
        self._threads.start()
        for member in self._members.values():
            self._send_go(member)

    def stop(self) -> None:
        """Tells all processes to stop."""
        self._ending = True
        for member in self._members.values():
            if member.wire is not None:
                member.wire.send(("stop", 0))

    def raise_lost(self) -> None:
        """Raises the first error that nobody awaited."""
        if self._lost is not None:
            raise self._lost
        for member in self._members.values():
            end = member.end
            if end is not None and end.done() and end.error() is not None and not end.awaited:
                end.result()

    def hear(self, wire: Wire | None, message: Message) -> None:
        """Handles a message of a process.

        Args:
          wire: the connection to the process; None: the message comes from the driver itself.
          message: the message.

        Raises:
          Exception: an error that ends the run at once.
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
            return  # it comes from an incarnation that is over
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
            self._died(member)  # that it is back is the first sign that it had died
        member.incarnation += 1
        member.wire, member.address = wire, address
        member.ready, member.stopped = False, self._ending  # it is not started if the run is ending
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
        """Returns the address of every node; before the run begins, none can be called."""
        if not self._running:
            return {}
        return {name: m.address if m.ready else None for name, m in self._members.items()}

    def _saved(self, node: str) -> dict[str, Any]:
        """Returns the states of a node's services in the last checkpoint."""
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
        """Kills a process to which another's connection broke.

        The calls over that connection fail as if the process had died, so it must not stay alive.
        """
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
            raise RuntimeError(f"the process of {member.node.name} died while it was starting")
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
        """Starts a process, and makes Ray report its death.

        A broken connection would not be enough, since a lost machine does not break any.
        """

        def ended(done: Any) -> None:
            self._events.put((None, ("life ended", 0, member, done.exception())))

        self._live(member.node.name).future().add_done_callback(ended)

    def _life_ended(self, member: _Member, error: Exception | None) -> None:
        if isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
            why = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"the process of {member.node.name} did not start: {why}") from error
        if member.wire is not None:
            self.kill(member.node.name)  # it may be alive, if Ray has only lost its connection
            self._died(member)
        # Ray starts the process again. Until then its reference fails at once, and this is retried.
        timer = threading.Timer(_AGAIN_S, self._start, [member])
        timer.daemon = True
        timer.start()


def _chained(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
