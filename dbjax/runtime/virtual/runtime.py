"""The virtual cluster: one thread, one virtual clock, a heap of events, real gradients.

Same cluster, seeds and program: same bytes. Two heaps: what the modelled program does,
and what it does not notice (observers, deaths to come). When the first is empty and
mains still wait, nothing can wake them any more: that is a deadlock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Literal, final

from dbjax.errors import DbjaxError, DeadlockError, NodeDied
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.context import DRIVER, Caller, current
from dbjax.runtime.event_log import EventLog, Script
from dbjax.runtime.interface import Future, describe_deadlock, ready
from dbjax.runtime.network_faults import matches
from dbjax.runtime.recording import (
    LiveObservations,
    Observations,
    RecordedObservations,
    ReplayedObservations,
)
from dbjax.runtime.trace import Trace
from dbjax.runtime.virtual import cards
from dbjax.runtime.virtual.failures import FailureInjector, require_failing_nodes
from dbjax.runtime.virtual.garbage import rare_garbage_collection
from dbjax.runtime.virtual.links import require_nodes
from dbjax.runtime.virtual.network import Network
from dbjax.runtime.virtual.node import VirtualNode
from dbjax.runtime.virtual.process import Process
from dbjax.runtime.virtual.replay_order import ReplayOrder
from dbjax.runtime.virtual.service import Service

_EVENTS_AT_ONCE = 10_000  # of each node: with more at one moment, time stands still
_LOG = logging.getLogger("dbjax")
Event = tuple[float, int, Callable[[Any], object], Any]
ProcessFn = Callable[..., Coroutine[Any, Any, Any]]


@final
class VirtualRuntime:
    """A `Runtime` in virtual time (see `dbjax.runtime.interface` for the rules).

    Args:
      log: to write the order of what happens into.
      script: the log of another run, on any runtime, to do again: services serve in the order
        that it says, and nodes see of time what it says. Until there is no more of it.
      begin_s: time at the beginning, of a run that is taken up.
      incarnation: how often it was taken up before.
      journals: whether what coroutines are given is written down, in memory, so that the run can
        be taken up exactly where it stood (`dbjax.checkpoint`).

    Attributes:
      ends_itself: whether the mains end whether time goes on or not; else a run that is to last
        until a time which never comes is an error.
    """

    clock: Literal["virtual", "wall"] = "virtual"

    def __init__(
        self,
        cluster: Cluster | None = None,
        *,
        seed: int = 0,
        trace: Trace | None = None,
        log: EventLog | None = None,
        script: Script | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
        journals: bool = False,
    ) -> None:
        self.cluster = (cluster or Cluster()).seeded(seed)
        if self.cluster.compute_s == "costs":
            raise ValueError("compute_s='costs' is for dbjax.run; here give a CompiledSteps()")
        self.seed = seed
        self.ends_itself = False
        self.trace, self.log, self.journals = trace, log, journals
        self._script = script  # of the run that is replayed
        self._replay_orders: list[ReplayOrder] = []
        if script is not None:
            self.clock = "wall"  # what is replayed must not think that its time is modelled
        self.now_s, self.incarnation = begin_s, incarnation
        self.resumed: Callable[[Any], Sequence[Any]] | None = None
        self.failed: list[tuple[Future[Any], Exception]] = []  # awaited or not, or still on its way
        self._events: list[Event] = []
        self._unnoticed: list[Event] = []
        self._order = itertools.count()
        self._nodes: dict[str, VirtualNode] = {}
        self._processes: list[Process] = []
        self._observers: list[Process] = []
        self._failure_injectors: dict[str, FailureInjector] = {}
        self.network = Network(self)
        self.services: dict[str, Service] = {}
        self.saved: dict[str, Any] = {}
        self.running = 0  # mains that have not ended
        self._stopping = False
        self._pauses: list[Callable[[], object]] = []
        self._halting = False  # to stop, or to pause
        self._end_s = begin_s  # when the last thing happened that the mains took part in

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        node = self._node(name)
        self.services[name] = Service(self, node, lambda: make(node, *args, **kwargs))
        return self.services[name]

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        node = self._node(name)
        task = Process(self, node, lambda: main(node, *args, **kwargs))
        task.future.on_done(lambda: self._main_ended(task))
        self._processes.append(task)
        self.running += 1
        self.at(self.now_s, task.start, None)
        self.failure_injector(node).add(task)
        return task.future

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        node = VirtualNode(self, name, observer=True)
        task = Process(self, node, lambda: main(node, *args, **kwargs))
        self._observers.append(task)
        self._observe(task)

    def restart(self, observer: str) -> None:
        """It begins anew, whatever it has done before; of a restored run."""
        task = next(main for main in self._observers if main.node.name == observer)
        task.died(for_good=False)
        task.future = Future(task.future.label)
        self._observe(task)

    def _observe(self, task: Process) -> None:
        task.future.on_done(lambda: self._stop_if_lost(task))
        self.at(self.now_s, task.start, None, unnoticed=True)

    def stop(self) -> None:
        self._stopping = self._halting = True

    def between_events(self, do: Callable[[], object]) -> None:
        """Does it once the event that happens now is over, before the next."""
        self._pauses.append(do)
        self._halting = True

    def coroutines(self) -> Iterator[Process | Service]:
        """Whatever may have one that waits."""
        return itertools.chain(self._processes, self._observers, self.services.values())

    @property
    def nodes_can_fail(self) -> bool:
        return self.cluster.nodes_can_fail

    def nodes(self) -> list[str]:
        return list(self._failure_injectors)

    def kill(self, name: str) -> None:
        """It is back after a time drawn from its machine's `mean_time_to_repair_s`."""
        if name not in self._failure_injectors:
            raise ValueError(
                f"kill({name!r}): no such node; there are {', '.join(self._failure_injectors)}"
            )
        journal = current.caller.journal
        _ = self._kill(name) if journal is None else journal.given(self._kill, name)

    def _kill(self, name: str) -> Future[None]:
        self._failure_injectors[name].kill()
        return ready(None)

    def cards_busy_s(self) -> dict[str, float]:
        return cards.busy_s(self._nodes.values(), self.now_s)

    def revive(self) -> None:
        for service in self.services.values():
            service.revive()

    def close(self) -> None:
        """Nothing goes on outside this process."""

    def run(self, until_s: float = math.inf) -> float:
        require_failing_nodes(self.cluster, self._failure_injectors)
        require_nodes(self.cluster, self._nodes)
        self._warn_of_idle_machines()
        try:
            with rare_garbage_collection():
                return self._run(until_s)
        finally:
            current.caller = DRIVER

    def _run(self, until_s: float) -> float:
        self._stopping = self._halting = False
        self._go_on(until_s)
        while self._pauses:
            pauses, self._pauses, self._halting = self._pauses, [], False
            if self._stopping:  # said in between
                self._halting = True
            for pause in pauses:
                pause()
            self._go_on(until_s)
        self._raise_lost_error()
        if self.running and not self._events and self._script is None:
            self._raise_deadlock()
        return until_s if self.running and not self._stopping else self._end_s

    def _go_on(self, until_s: float) -> None:
        at_once = _EVENTS_AT_ONCE * (len(self._nodes) + len(self._observers))
        while True:
            begin_s = self.now_s
            if self._some(at_once, until_s):
                return
            if self.now_s == begin_s and until_s < math.inf and not self.ends_itself:
                raise ValueError(
                    f"virtual time stands still at {begin_s:g} s, and until_s={until_s:g} never "
                    "comes: nothing takes time; give a compute_s above 0, or steps"
                )

    def _some(self, count: int, until_s: float) -> bool:
        """Lets so many events happen; returns whether there is nothing to do any more."""
        events, unnoticed, pop = self._events, self._unnoticed, heapq.heappop
        end_s = self._end_s
        for _ in range(count):
            if not events or self._halting:
                break
            heap = unnoticed if self.running and unnoticed and unnoticed[0] < events[0] else events
            if heap[0][0] > until_s:
                self.now_s = until_s
                break
            self.now_s, _, do, argument = pop(heap)
            if self.running:
                end_s = self.now_s
            do(argument)
        else:
            self._end_s = end_s
            return False
        self._end_s = end_s
        return True

    def at(
        self, time_s: float, do: Callable[[Any], object], argument: Any, *, unnoticed: bool = False
    ) -> None:
        """Schedules `do(argument)`; ties go to what was scheduled first."""
        heap = self._unnoticed if unnoticed else self._events
        heapq.heappush(heap, (time_s, next(self._order), do, argument))

    def caller(self, node: VirtualNode, label: str) -> Caller:
        """Something with code of its own, on a node."""
        observations: Observations = LiveObservations()
        if self._script is not None:
            observations = ReplayedObservations(self._script, label)
        elif self.log is not None and not node.observer:
            observations = RecordedObservations(self.log.seen(label))
        return Caller(node, label, observations)

    def failure_injector(self, node: VirtualNode) -> FailureInjector:
        """Of a node, and of all that lives on it."""
        if node.name not in self._failure_injectors:
            self._failure_injectors[node.name] = FailureInjector(self, node)
        return self._failure_injectors[node.name]

    def replay_order(self, service: str) -> ReplayOrder | None:
        """The order of a service's calls, where one is given."""
        if self._script is None:
            return None
        self._replay_orders.append(ReplayOrder(self._script, service))
        return self._replay_orders[-1]

    def replayed(self) -> int:
        """How many calls were served as the script says."""
        return sum(replay_order.served for replay_order in self._replay_orders)

    def _node(self, name: str) -> VirtualNode:
        if name not in self._nodes:
            self._nodes[name] = VirtualNode(self, name)
        return self._nodes[name]

    def _main_ended(self, main: Process) -> None:
        self.running -= 1
        self._stop_if_lost(main)

    def _stop_if_lost(self, main: Process) -> None:
        """Rule 7: a main that fails while nobody awaits it ends the run at once."""
        error = main.future.error()
        if error and not isinstance(error, NodeDied) and not main.future.watched():
            self.stop()

    def _warn_of_idle_machines(self) -> None:
        patterns = self.cluster.machines
        used = {next((p for p in patterns if matches(p, name)), None) for name in self._nodes}
        for pattern in patterns:
            if pattern not in used:
                _LOG.warning(
                    "Cluster.machines: no node runs on that of %r; there are %s",
                    pattern,
                    ", ".join(sorted(self._nodes)[:6]),
                )

    def _raise_lost_error(self) -> None:
        failed, self.failed = self.failed, []
        for future, error in failed:
            # an answer of the protocol, such as NodeDied, on its way to whoever is dead by now
            moot = not future.done() and isinstance(error.__cause__, DbjaxError)
            if not future.awaited and not moot:
                raise error

    def _raise_deadlock(self) -> None:
        waits = {main.node.name: main.waiting for main in self._processes if not main.future.done()}
        raise DeadlockError(describe_deadlock(self.now_s, waits))
