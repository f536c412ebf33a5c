"""The discrete-event simulator: a virtual clock, and heaps of future events.

It knows nothing of nodes, services or networks, which schedule their events here (`at`). There are
two heaps: one holds the events of the modelled program, the other those that the program does not
notice, such as the steps of observers and future failures. If the first heap is empty while
processes still wait, nothing can wake them any more: that is a deadlock.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, final

from dbjax.errors import DbjaxError
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.futures import Future
from dbjax.runtime.trace import Trace

_EVENTS_AT_ONCE = 10_000  # for each node; with more at the same time, time stands still
Event = tuple[float, int, Callable[[Any], object], Any]  # time, order, function, its argument


@final
class Simulator:
    """The clock and the events of one virtual run.

    Args:
      cluster: the modelled cluster; it has a seed.
      seed: the seed of the program's own randomness.
      trace: collects rows and spans; None: they are not collected.
      log: records the order in which services serve calls; None: nothing is recorded.
      begin_s: the time on the clock at the beginning.
      incarnation: how many times the run was resumed, not counting exact resumptions.
      journals: whether coroutines keep journals (see `dbjax.runtime.virtual.journal`).

    Attributes:
      spans: the trace that collects spans; None: they are not collected.
      now_s: the time on the clock, in seconds.
      running: the number of processes that have not ended.
      ends_itself: whether the processes end even if time stands still. If not, a run until a time
        that never comes is an error.
      randomness: whether the program has drawn random numbers of its own.
      failed: the futures that failed, with their errors, whether or not anyone awaits them.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        trace: Trace | None = None,
        log: EventLog | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
        journals: bool = False,
    ) -> None:
        self.cluster, self.seed, self.incarnation = cluster, seed, incarnation
        self.trace, self.log, self.journals = trace, log, journals
        self.spans = trace if trace is not None and trace.max_spans else None
        self.now_s = begin_s
        self.running = 0
        self.ends_itself = False
        self.randomness = False
        self.failed: list[tuple[Future[Any], Exception]] = []
        self._events: list[Event] = []
        self._unnoticed: list[Event] = []
        self._scheduled = 0  # the number of events so far
        self._end_s = begin_s  # when the last process ended
        self._stopping = False
        self._pauses: list[Callable[[], object]] = []
        self._halting = False  # whether to stop or to pause before the next event

    def at(self, time_s: float, do: Callable[[Any], object], argument: Any) -> None:
        """Schedules an event. Events at the same time happen in the order of scheduling.

        Args:
          time_s: when it happens, in seconds on the clock.
          do: the function to call then.
          argument: the argument of that function.
        """
        order = self._scheduled = self._scheduled + 1
        heappush(self._events, (time_s, order, do, argument))

    def at_unnoticed(self, time_s: float, do: Callable[[Any], object], argument: Any) -> None:
        """Schedules an event on which the modelled program does not depend.

        The run may end without it. Otherwise it is like any other event, see `at`.
        """
        order = self._scheduled = self._scheduled + 1
        heappush(self._unnoticed, (time_s, order, do, argument))

    def process_ended(self) -> None:
        """Is called when a process has ended."""
        self.running -= 1
        self._end_s = self.now_s

    def stop(self) -> None:
        """Ends `run` before the next event."""
        self._stopping = self._halting = True

    def between_events(self, do: Callable[[], object]) -> None:
        """Calls `do` when the current event is over, before the next one."""
        self._pauses.append(do)
        self._halting = True

    def out_of_events(self) -> bool:
        """Returns whether the modelled program has no more events."""
        return not self._events

    def run(self, until_s: float, nodes: int) -> float:
        """Runs events until there are none, `until_s` has come, or `stop` is called.

        Args:
          until_s: when to end, in seconds on the clock; may be infinite.
          nodes: the number of nodes, for telling whether time stands still.

        Returns:
          The time at which the run ended, in seconds.

        Raises:
          ValueError: time stands still before `until_s`.
        """
        with rare_garbage_collection():
            self._stopping = self._halting = False
            self._advance(until_s, nodes)
            while self._pauses:
                pauses, self._pauses, self._halting = self._pauses, [], False
                if self._stopping:  # `stop` was called in between
                    self._halting = True
                for pause in pauses:
                    pause()
                self._advance(until_s, nodes)
        if not self.running:
            return self._end_s
        return self.now_s if self._stopping else until_s

    def raise_lost_error(self) -> None:
        """Raises the first error of a future that nobody awaits."""
        failed, self.failed = self.failed, []
        for future, error in failed:
            # A reply such as NodeDied may still be on its way to a node that has failed since.
            moot = not future.done() and isinstance(error.__cause__, DbjaxError)
            if not future.awaited and not moot:
                raise error

    def _advance(self, until_s: float, nodes: int) -> None:
        at_once = _EVENTS_AT_ONCE * nodes
        while True:
            begin_s = self.now_s
            if self._some_events(at_once, until_s):
                return
            if self.now_s == begin_s and until_s < math.inf and not self.ends_itself:
                raise ValueError(
                    f"virtual time stands still at {begin_s:g} s, and until_s={until_s:g} never "
                    "comes: nothing takes time; give a compute_s above 0, or steps"
                )

    def _some_events(self, count: int, until_s: float) -> bool:
        """Runs at most `count` events; returns whether nothing is left to do."""
        events, unnoticed = self._events, self._unnoticed
        for _ in range(count):
            if self._halting or not events:
                return True
            heap = events
            if unnoticed and self.running and unnoticed[0] < events[0]:
                heap = unnoticed
            if heap[0][0] > until_s:
                self.now_s = until_s
                return True
            self.now_s, _, do, argument = heappop(heap)
            do(argument)
        return False


@contextlib.contextmanager
def rare_garbage_collection(new_objects: int = 100_000) -> Iterator[None]:
    """Makes Python search for cyclic garbage rarely while the block runs.

    The futures of thousands of replicas are many objects with few cycles. With Python's default
    thresholds, the search took half the time of a run of 10,000 replicas.

    Args:
      new_objects: after how many new objects Python searches. Within another such block, the
        larger number counts.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(new_objects, before[0]), 50, 1_000)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
