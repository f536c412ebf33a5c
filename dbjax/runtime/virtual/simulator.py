"""The discrete-event simulator: a virtual clock, and a heap of what happens when.

It knows nothing of nodes, services or networks; they schedule what they do here (`at`), and the
runtime puts them together. There are two heaps: one holds what the modelled program does, the
other what the program does not notice, such as observers and failures to come. When the first
heap is empty and processes still wait, nothing can wake them any more: that is a deadlock.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, final

from dbjax.errors import DbjaxError
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.futures import Future
from dbjax.runtime.trace import Trace

_EVENTS_AT_ONCE = 10_000  # of each node: with more at one moment, time stands still
Event = tuple[float, int, Callable[[Any], object], Any]


@final
class Simulator:
    """The clock and the events of one virtual run.

    Args:
      cluster: what is modelled; it has a seed.
      seed: of the program's own randomness.
      trace: collects rows and spans; None: nobody does.
      log: records the order in which services serve calls; None: nobody does.
      begin_s: what the clock says at the beginning.
      incarnation: how many times the run was resumed.
      journals: whether coroutines keep journals (see `journal`).

    Attributes:
      now_s: what the clock says.
      running: how many processes have not ended.
      ends_itself: whether the processes end even if time stands still. If not, a run until a time
        that never comes is an error.
      failed: futures that failed, and their errors, whether or not anyone awaits them.
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
        self.now_s = begin_s
        self.running = 0
        self.ends_itself = False
        self.failed: list[tuple[Future[Any], Exception]] = []
        self._events: list[Event] = []
        self._unnoticed: list[Event] = []
        self._order = itertools.count()
        self._end_s = begin_s  # when the last event happened that a process took part in
        self._stopping = False
        self._pauses: list[Callable[[], object]] = []
        self._halting = False  # to stop, or to pause

    def at(
        self, time_s: float, do: Callable[[Any], object], argument: Any, *, unnoticed: bool = False
    ) -> None:
        """Schedules `do(argument)`. Events at the same time happen in the order of scheduling.

        Args:
          unnoticed: the modelled program does not depend on it, so it keeps no run alive.
        """
        heap = self._unnoticed if unnoticed else self._events
        heapq.heappush(heap, (time_s, next(self._order), do, argument))

    def stop(self) -> None:
        """Ends `run` before the next event."""
        self._stopping = self._halting = True

    def between_events(self, do: Callable[[], object]) -> None:
        """Calls `do` when the current event is over, before the next one."""
        self._pauses.append(do)
        self._halting = True

    def out_of_events(self) -> bool:
        """Whether the modelled program can do nothing any more."""
        return not self._events

    def run(self, until_s: float, nodes: int) -> float:
        """Lets events happen until there are none, `until_s` has come, or `stop` is called.

        Args:
          nodes: how many there are, to tell when time stands still.

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
        return until_s if self.running and not self._stopping else self._end_s

    def raise_lost_error(self) -> None:
        """Raises the first error of a future that nobody awaits."""
        failed, self.failed = self.failed, []
        for future, error in failed:
            # A reply of the protocol, such as NodeDied, may be on its way to a node that has died.
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
        """Lets at most `count` events happen; returns whether there is nothing left to do."""
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


@contextlib.contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Makes Python search for cyclic garbage rarely while the block runs.

    The futures of thousands of replicas are many objects with few cycles. With Python's default
    thresholds, half the time of a run of 10,000 replicas went into the search.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 1_000)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
