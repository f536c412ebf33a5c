"""The driver's view of the processes of a run: which are up, have died, hang, or have ended."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import ray
from ray.exceptions import RayActorError

from dbjax.runtime.interface import Future
from dbjax.runtime.ray.handle import Peer, Peers
from dbjax.runtime.ray.process import Batch, RayNode
from dbjax.runtime.threads import ThreadsRuntime

# Who it is about, in which of its lives, what is new, and a value or an error.
Event = tuple["_Member | None", int, str, Any]
_AGAIN_S = 0.2
_DEATHS = 10  # how often a process may die before the run begins
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Member:
    node: RayNode
    end: Future[Any] | None  # of its coroutine
    actor: Any
    start: tuple[Any, ...]  # the node, encoded
    life: int = 0  # how often it was made, so that news of an earlier life is not believed
    peer: Peer = Peer("")
    deaths: int = 0
    ready: bool = False
    stopped: bool = False
    heard_s: float = dataclasses.field(default_factory=time.monotonic)  # when it last answered


@final
class Members:
    """Starts the processes of a run, listens to them, and starts them again when they have died.

    Args:
      nodes: the nodes, by name.
      ends: the futures of the coroutines that run on nodes, by the node's name.
      actors: Ray's handles of the processes, and the encoded nodes, by the node's name.
      peers: the driver's view of the processes.
      threads: the driver's threads runtime, with its clock and its trace.
      hang_s: how long a process may say nothing, in seconds, until it is killed.
      report: is called with every batch.
    """

    def __init__(
        self,
        nodes: Mapping[str, RayNode],
        ends: Mapping[str, Future[Any]],
        actors: Mapping[str, tuple[Any, tuple[Any, ...]]],
        peers: Peers,
        threads: ThreadsRuntime,
        hang_s: float,
        report: Callable[[Batch], None],
    ) -> None:
        self._peers, self._threads, self._hang_s, self._report = peers, threads, hang_s, report
        self._engine = threads.engine
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running = self._ending = False
        self._lost: Exception | None = None
        self._members = {
            name: _Member(node, ends.get(name), *actors[name], peer=Peer(name))
            for name, node in nodes.items()
        }
        for member in self._members.values():
            self._start(member)

    def missing(self) -> list[str]:
        """Returns the names of the nodes whose processes are down, or not ready yet."""
        return [name for name, member in self._members.items() if not member.ready]

    def silent(self, for_s: float) -> list[str]:
        """Returns the names of the nodes whose processes have said nothing for so many seconds."""
        now_s = time.monotonic()
        return [name for name, m in self._members.items() if now_s - m.heard_s > for_s]

    def over(self) -> bool:
        """Returns whether all coroutines have ended, or nobody awaited an error."""
        ends = [m.end for m in self._members.values() if m.end is not None]
        return self._lost is not None or all(end.done() for end in ends)

    def late(self) -> list[str]:
        """Returns the names of the nodes whose processes are up and have not stopped."""
        return [n for n, m in self._members.items() if m.ready and not m.stopped]

    def kill(self, name: str) -> None:
        """Kills a node's process, if it is up; Ray starts it again."""
        member = self._members[name]
        if member.ready:
            ray.kill(member.actor, no_restart=False)
            self._events.put((member, member.life, "died", None))

    def go(self) -> None:
        """Starts all coroutines and observers, now that all services are ready."""
        self._running = True
        self._peers.learn(self._up())
        self._threads.start()
        for member in self._members.values():
            self._go(member)

    def stop(self) -> None:
        """Tells all processes to stop."""
        self._ending = True
        for member in self._members.values():
            if member.ready:
                self._ask(member, "stopped", member.actor.stop.remote())

    def raise_lost(self) -> None:
        """Raises the first error that nobody awaited."""
        if self._lost is not None:
            raise self._lost
        for member in self._members.values():
            end = member.end
            if end is not None and end.done() and end.error() is not None and not end.awaited:
                end.result()

    def tell(self, kind: str, *about: Any) -> None:
        """Takes notice of what the driver's own calls have met."""
        self._events.put((None, 0, kind, about))

    def wake(self) -> None:
        """Makes `hear` return."""
        self.tell("nothing")

    def hear(self, timeout_s: float) -> None:
        """Waits for the next event, and does what it asks for.

        Raises:
          Exception: an error that ends the run at once.
        """
        try:
            member, life, kind, value = self._events.get(timeout=timeout_s)
        except queue.Empty:
            pass
        else:
            if member is None:
                self._happened(None, (kind, *value))
            elif member.life == life:
                self._answered(member, kind, value)
        if self._events.empty():  # otherwise the answer may be there
            self._end_hung()

    def _end_hung(self) -> None:
        """Kills the processes that were up and do not answer any more."""
        before_s = time.monotonic() - self._hang_s
        for member in self._members.values():
            if member.peer.actor is not None and member.heard_s < before_s:
                name = member.node.name
                _LOG.warning("%s has not answered for %g s: it is killed", name, self._hang_s)
                ray.kill(member.actor, no_restart=False)
                self._died(member)

    def _answered(self, member: _Member, kind: str, value: Any) -> None:
        if isinstance(value, RayActorError) and not value.actor_init_failed:
            self._died(member)
            return
        if isinstance(value, BaseException):
            self._raise(member, kind, value)
        member.heard_s = time.monotonic()
        if kind == "hello":
            self._hello(member, *value)
        elif kind == "begun":
            self._ready(member)
        elif kind == "died":
            self._died(member)
        elif isinstance(value, Batch):
            self._report(value)
            for event in value.events:
                self._happened(member, event)
            if kind == "stopped":
                member.stopped = True
            else:
                self._ask(member, "batch", member.actor.listen.remote())

    def _raise(self, member: _Member, kind: str, error: BaseException) -> None:
        """Raises the error with which a process could not be started, or with which it failed."""
        cause = getattr(error, "cause", None) or error
        if kind == "hello":
            why = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"the process of {member.node.name} did not start: {why}") from error
        raise cause

    def _happened(self, member: _Member | None, event: tuple[Any, ...]) -> None:
        """Takes notice of an event in a process; None: in the driver."""
        kind, *rest = event
        if kind == "suspect":
            suspected = self._members[rest[0].name]
            if suspected.peer.incarnation == rest[0].incarnation and suspected.ready:
                self._died(suspected)
        elif kind == "failed":
            raise _chained(*rest)
        elif kind == "lost":
            self._lost = self._lost or _chained(*rest)
        elif member is not None and member.end is not None and not member.end.done():
            if kind == "ended":
                member.end.set_result(rest[0])
            elif kind == "ended badly":
                lost = not member.end.watched()
                error = _chained(*rest)
                member.end.set_error(error)
                self._lost = self._lost or (error if lost else None)

    def _start(self, member: _Member) -> None:
        """Waits until Ray has made the process, and then gives it its node."""
        self._ask(member, "hello", member.actor.hello.remote())

    def _hello(self, member: _Member, machine: str, memory: str) -> None:
        if memory == member.peer.memory:  # it counts as dead, but only its connections broke
            ray.kill(member.actor, no_restart=False)
            self._again(member)
            return
        incarnation = member.peer.incarnation + 1
        member.peer = Peer(member.node.name, incarnation, member.actor, machine, memory)
        with_main = member.end is not None and not member.end.done() and not self._ending
        self._ask(member, "batch", member.actor.listen.remote())
        begun = member.actor.begin.remote(
            member.peer._replace(actor=None),
            self._engine.incarnation + incarnation,
            with_main,
            self._up() if self._running else [],
            self._saved(member.node.name),
            *member.start,
        )
        self._ask(member, "begun", begun)

    def _ready(self, member: _Member) -> None:
        member.ready = True
        member.stopped = self._ending  # it is not started if the run is ending
        if self._running:  # it has come back
            if not self._ending:
                self._record(member, "returned")
                self._go(member)
            self._tell_all(member.peer)

    def _go(self, member: _Member) -> None:
        self._ask(member, "gone", member.actor.go.remote(self._engine.now_s(), self._up()))

    def _died(self, member: _Member) -> None:
        """Takes notice that a process is dead, or is not up yet; it will be started again."""
        was_up, member.life = member.peer.actor is not None, member.life + 1
        member.ready, member.peer = False, member.peer._replace(actor=None)
        if was_up:
            member.heard_s = time.monotonic()
            member.deaths += 1
        if was_up and self._running:
            if not self._ending:
                self._record(member, "died")
            self._tell_all(member.peer)
        elif was_up:  # nobody has heard of it yet, so the next one takes its place
            member.peer = member.peer._replace(incarnation=member.peer.incarnation - 1)
            if member.deaths > _DEATHS:
                raise RuntimeError(
                    f"the process of {member.node.name} died {member.deaths} times while it was "
                    "starting: see Ray's logs of it"
                )
        self._again(member)

    def _again(self, member: _Member) -> None:
        """Tries again to start a process, somewhat later: Ray may not have made it yet."""
        timer = threading.Timer(_AGAIN_S, self._start, [member])
        timer.daemon = True
        timer.start()

    def _ask(self, member: _Member, kind: str, reply: Any) -> None:
        """Makes the reply of a process an event."""
        life = member.life

        def answered(done: Any) -> None:
            error = done.exception()
            value = error if error is not None else done.result()
            self._events.put((member, life, kind, value))

        reply.future().add_done_callback(answered)

    def _up(self) -> list[Peer]:
        return [self._peers.me, *(m.peer for m in self._members.values() if m.ready)]

    def _tell_all(self, news: Peer) -> None:
        self._peers.learn([news])
        for member in self._members.values():
            if member.ready and member.peer.name != news.name:
                member.actor.learn.remote([news])

    def _saved(self, node: str) -> dict[str, Any]:
        """Returns the states of a node's services in the last checkpoint."""
        states = self._threads.latest_states
        return {n: v for n, v in states.items() if f"{node}/".startswith(f"{n}/")}

    def _record(self, member: _Member, event: str) -> None:
        if self._engine.trace is not None:
            self._engine.trace.record(member.node.name, self._engine.now_s(), {"event": event})


def _chained(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error
