"""The driver's view of the processes of a run: which are up, have died, hang, or have ended."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, ObjectLostError, RayActorError

from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Future
from dbjax.runtime.ray.handle import Peer, Peers
from dbjax.runtime.ray.messages import decode, encode_all
from dbjax.runtime.ray.options import START_S
from dbjax.runtime.ray.process import Batch, LogFile, RayNode
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.threads.engine import POLL_S

_RETRY_S = 0.2  # after which a process is called again that died before it could be reached
_CLOSE_S = 5.0  # how long the threads that follow the processes may take to end
_DEATHS = 10  # how often a process may die before it is ready for the first time
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    end: Future[Any] | None  # of its coroutine
    peer: Peer
    address: str = ""  # where JAX can listen in it
    begun: Any = None  # what Ray will return of `Process.begin`
    ready: bool = False
    stopped: bool = False
    suspected: int = -1  # the incarnation that somebody could not reach
    deaths: int = 0


@final
class Members:
    """Starts the processes of a run, listens to them, and starts them again when they have died.

    A thread follows each process. One lock, `changed`, guards what they know.

    Args:
      actors: Ray's handles of the processes, by the node's name.
      nodes: all nodes by name.
      ends: the futures of the coroutines that run on nodes, by the node's name.
      peers: the driver's view of the processes.
      threads: the driver's threads runtime, with its clock and its trace.
      log: the event log, if there is one.
      hang_s: how long a process may give no sign of life, in seconds, until it is killed.

    Attributes:
      files: how many lines of the log file of each incarnation the event log has.
    """

    def __init__(
        self,
        actors: Mapping[str, Any],
        nodes: Mapping[str, RayNode],
        ends: Mapping[str, Future[Any]],
        peers: Peers,
        threads: ThreadsRuntime,
        log: EventLog | None,
        hang_s: float,
    ) -> None:
        self._peers, self._threads, self._log, self._hang_s = peers, threads, log, hang_s
        self._engine, self._nodes, self._encoded = threads.engine, nodes, ray.put(encode_all(nodes))
        self._changed, self._home = threading.Condition(), threading.get_ident()
        peers.tell, peers.wait = self._tell, self._wait_for_reply
        self.files: dict[LogFile, int] = {}
        self._ends = ends
        self._running = self._ending = self._closed = False
        self._failed: BaseException | None = None  # ends the run at once
        self._lost: Exception | None = None  # the first error that nobody awaited
        self._members = {
            name: _Member(name, actor, ends.get(name), Peer(name)) for name, actor in actors.items()
        }
        self._followers = [
            threading.Thread(target=self._follow, args=[member], daemon=True)
            for member in self._members.values()
        ]
        for follower in self._followers:
            follower.start()

    def missing(self) -> list[str]:
        """Returns the names of the nodes whose processes are down, or not ready yet."""
        return [name for name, member in self._members.items() if not member.ready]

    def over(self) -> bool:
        """Returns whether all coroutines have ended, or nobody awaited an error."""
        return self._lost is not None or all(end.done() for end in self._ends.values())

    def late(self) -> list[str]:
        """Returns the names of the nodes whose processes are up and have not stopped."""
        return [n for n, m in self._members.items() if m.ready and not m.stopped]

    def kill(self, name: str, hang: bool) -> bool:
        """Kills or stops a node's process, if it is up, and returns whether it was."""
        member = self._members[name]
        ready = member.ready
        if ready and hang:
            member.actor.__ray_call__.remote(lambda _: os.kill(os.getpid(), signal.SIGSTOP))
        elif ready:
            ray.kill(member.actor, no_restart=False)
        return ready

    def go(self) -> bool:
        """Starts all coroutines and observers; returns False if a process is not ready any more."""
        with self._changed:
            if self.missing():
                return False
            self._running = True
            self._peers.learn(self._up())
            self._threads.start()
            for member in self._members.values():
                self._go(member)
        return True

    def stop(self) -> None:
        """Tells all processes to stop."""
        with self._changed:
            self._ending = True
            for member in self._members.values():
                if member.ready:
                    member.actor.stop.remote()

    def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        for member in self._members.values():
            ray.kill(member.actor, no_restart=True)
        end_s = time.monotonic() + _CLOSE_S
        for follower in self._followers:
            follower.join(max(0.0, end_s - time.monotonic()))

    def raise_lost(self) -> None:
        """Raises the first error that nobody awaited."""
        if self._lost is not None:
            raise self._lost
        for end in self._ends.values():
            if end.done() and end.error() is not None and not end.awaited:
                end.result()

    def wait(self, done: Callable[[], bool], timeout_s: float = math.inf) -> bool:
        """Waits for something, and returns whether it has happened in time.

        Raises:
          Exception: an error that ends the run at once.
        """
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while not done():
                left_s = end_s - time.monotonic()
                if self._failed is not None:
                    raise self._failed
                if left_s <= 0:
                    return False
                self._changed.wait(min(POLL_S, left_s))
        return True

    def _tell(self, *event: Any) -> None:
        """Takes notice of what the driver's own calls have met."""
        with self._changed:
            self._happened(None, *event)
            self._changed.notify_all()

    def _wait_for_reply(self, future: Future[Any]) -> None:
        """Waits for a reply to the driver, if the calling thread is the one that runs."""
        if threading.get_ident() == self._home:
            self.wait(future.done)

    def _follow(self, member: _Member) -> None:
        """Starts a process, and listens to it, again and again until the run is closed."""
        try:
            while not self._closed:
                try:
                    self._live(member)
                except (RayActorError, ObjectLostError, NodeDiedError) as error:
                    if isinstance(error, RayActorError) and error.actor_init_failed:
                        why = str(error).strip().splitlines()[-1]
                        raise RuntimeError(
                            f"the process of {member.name} did not start: {why}"
                        ) from error
                except GetTimeoutError:
                    self._end_hung(member)
                self._died(member)
        except BaseException as error:
            with self._changed:
                self._failed = self._failed or getattr(error, "cause", None) or error
                self._changed.notify_all()

    def _live(self, member: _Member) -> None:
        """Follows an incarnation of a process, until it dies or is killed."""
        actor, before = member.actor, member.peer.memory
        hello = actor.hello.remote(len(self._group(member)) > 1)
        machine, memory, path, address = ray.get(hello, timeout=START_S)
        if memory == before:  # it counts as dead
            ray.kill(actor, no_restart=False)
            return
        with self._changed:
            incarnation = member.peer.incarnation + 1
            member.peer = Peer(member.name, incarnation, actor, machine, memory)
            member.address = address
            group = self._group(member)
            if all(other.peer.actor is not None for other in group):
                for index, other in enumerate(group):
                    joins = (group[0].address, len(group), index) if len(group) > 1 else None
                    self._begin(other, joins)
        file = LogFile(member.name, machine, path)
        if path:
            self.files[file] = 0
        while not self._closed:
            if member.begun is not None and ray.wait([member.begun], timeout=0)[0]:
                ray.get(member.begun)  # raises what `begin` could not report
                member.begun = None
            heard = ray.get(actor.listen.remote(memory), timeout=self._hang_s)
            if heard is None:  # Ray has restarted it already
                return
            batch: Batch = decode(heard)
            with self._changed:
                if member.peer.actor is None:  # it counts as dead
                    return
                self._take(batch, file)
                for event in batch.events:
                    self._happened(member, *event)
                self._changed.notify_all()
            if member.suspected == incarnation:  # it lives, but callers were told that it is dead
                ray.kill(actor, no_restart=False)
                return

    def _take(self, batch: Batch, file: LogFile) -> None:
        """Adds to the trace and to the event log what a process has recorded."""
        if self._engine.trace is not None:
            self._engine.trace.take(batch.rows, batch.spans)
        if self._log is not None and batch.lines:
            self._log.take(batch.lines)
        if file in self.files:
            self.files[file] += batch.lines.count("\n")

    def _begin(self, member: _Member, joins: tuple[str, int, int] | None) -> None:
        ends = [other.end for other in self._group(member) if other.end is not None]
        member.begun = member.actor.begin.remote(
            member.peer._replace(actor=None),
            self._engine.incarnation + member.peer.incarnation,
            not self._ending and not all(end.done() for end in ends),
            self._up() if self._running else [],
            self._saved(member.name),
            self._encoded,
            joins,
        )

    def _group(self, member: _Member) -> list[_Member]:
        """Returns the processes that compute jointly with this one and fail with it, and itself."""
        names = self._nodes[member.name].group or [member.name]
        return [self._members[name] for name in names]

    def _happened(self, member: _Member | None, kind: str, value: Any = None) -> None:
        """Takes notice of an event in a process; None: in the driver."""
        if kind == "suspect":
            suspected = self._members[value.name]
            suspected.suspected = max(suspected.suspected, value.incarnation)
        elif kind == "failed":
            self._failed = self._failed or value
        elif kind == "lost":
            self._lost = self._lost or value
        elif member is None:
            return
        elif kind == "ready":
            self._ready(member)
        elif kind == "stopped":
            member.stopped = True
        elif member.end is not None and not member.end.done():
            if kind == "ended":
                member.end.set_result(value)
            else:
                self._lost = self._lost or (None if member.end.watched() else value)
                member.end.set_error(value)

    def _ready(self, member: _Member) -> None:
        member.ready = True
        member.stopped = self._ending  # it is not started if the run is ending
        if self._running:  # it has come back
            if not self._ending:
                self._record(member, "returned")
                self._go(member)
            self._tell_all(member.peer)

    def _go(self, member: _Member) -> None:
        member.actor.go.remote(self._engine.now_s(), self._up())

    def _end_hung(self, member: _Member) -> None:
        ray.kill(member.actor, no_restart=False)
        if member.peer.actor is not None:
            _LOG.warning("%s has not answered for %g s: it is killed", member.name, self._hang_s)
        elif not self._running:
            raise RuntimeError(f"the process of {member.name} has not come up in {START_S:g} s")

    def _died(self, member: _Member) -> None:
        """Takes notice that a process, and so its group, is dead; they will be started again."""
        with self._changed:
            was_up = member.peer.actor is not None
            for other in self._group(member) if was_up else ():
                if other is not member and other.peer.actor is not None:
                    ray.kill(other.actor, no_restart=False)
                    self._declare_dead(other)
            self._declare_dead(member)
        if not was_up:
            time.sleep(_RETRY_S)

    def _declare_dead(self, member: _Member) -> None:
        was_up, was_ready = member.peer.actor is not None, member.ready
        member.ready, member.peer = False, member.peer._replace(actor=None)
        if was_ready and self._running and not self._ending:
            self._record(member, "died")
        if was_up and self._running:
            self._tell_all(member.peer)
        elif was_up:  # no other process has heard of it: the next one gets the same incarnation
            member.peer = member.peer._replace(incarnation=member.peer.incarnation - 1)
            member.deaths += 1
            if member.deaths > _DEATHS:
                raise RuntimeError(f"the process of {member.name} died {member.deaths} times "
                                   "while it was starting: see Ray's logs of it")  # fmt: skip

    def _up(self) -> list[Peer]:
        return [self._peers.me, *(m.peer for m in self._members.values() if m.ready)]

    def _tell_all(self, news: Peer) -> None:
        self._peers.learn([news])
        for member in self._members.values():
            if member.peer.actor is not None and member.name != news.name:
                member.actor.learn.remote([news])

    def _saved(self, node: str) -> dict[str, Any]:
        """Returns the states of a node's services in the last checkpoint."""
        states = self._threads.latest_states
        return {n: v for n, v in states.items() if f"{node}/".startswith(f"{n}/")}

    def _record(self, member: _Member, event: str) -> None:
        if self._engine.trace is not None and member is self._group(member)[0]:
            self._engine.trace.record(member.name, self._engine.now_s(), {"event": event})
