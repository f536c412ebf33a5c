"""What threads of a run share: the wall clock, the driving of coroutines, who waits for what."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Coroutine
from typing import Any, final

from dbjax.runtime.context import DRIVER, Caller, current
from dbjax.runtime.interface import Future
from dbjax.runtime.trace import Trace

POLL_S = 0.1  # how often a wait looks for the end, a deadlock, or a stop


@final
class Engine:
    """The state that a run's nodes, services and threads share.

    Args:
      seed: of the program's randomness.
      trace: collects rows and spans; None: nobody does.
      begin_s: what the clock says at the beginning.
      incarnation: how many times the run was resumed.

    Attributes:
      returned: whether this process is a later incarnation of its node.
      alone: whether no replica of this run lives in another process.
      services: every service that this process can call, by name.
      failed: futures that hold an error, whether or not anyone awaits them.
      pool: threads for service methods that are coroutines.
      threads: how many processes of the run have a thread here.
      sleeping: how many nodes sleep.
      computing: nodes that have computed something.
      serving: services that are serving a call.
    """

    def __init__(self, seed: int, trace: Trace | None, begin_s: float, incarnation: int) -> None:
        self.seed, self.trace, self.incarnation = seed, trace, incarnation
        self.returned = False
        self.alone = True
        self.services: dict[str, Any] = {}
        self.failed: list[Future[Any]] = []
        self.pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="service")
        self.threads = 0
        self.sleeping = 0
        self.computing: set[Any] = set()
        self.serving: set[Any] = set()
        self._before_s, self._begin_s = begin_s, time.perf_counter()
        self._stopping = threading.Event()
        self._waits: dict[Any, Future[Any] | None] = {}  # of every node whose coroutine runs
        self._wakes = 0

    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._begin_s + self._before_s

    def start_clock(self, now_s: float) -> None:
        """Sets the clock to `now_s`, counted from where the run began or was resumed."""
        self._begin_s = time.perf_counter() - now_s

    def reset(self) -> None:
        """Makes ready for a run."""
        self._stopping.clear()

    def stop(self) -> None:
        """Ends the run: coroutines are not resumed any more."""
        self._stopping.set()

    def stopping(self) -> bool:
        """Whether the run is over, or an error that nobody awaits has ended it."""
        return self._stopping.is_set()

    def over(self) -> bool:
        """Whether the run is over for the node whose code this thread runs.

        What such a node starts is never done. So a process ends, too, that never has to wait
        because everything it asks for is there at once.
        """
        return self._stopping.is_set() and current.caller is not DRIVER

    def waits_for_numerics(self) -> bool:
        """Whether a computation must have ended when its future is done.

        With several nodes that compute, it must: whoever fetched parameters that still wait for
        another node's gradient would wait for it too, and nothing would be asynchronous. A single
        node may be one computation ahead of its arrays, as jax is, unless spans are to be timed.
        """
        several = not self.alone or max(self.threads, len(self.computing)) > 1
        return several or (self.trace is not None and self.trace.max_spans > 0)

    def drive(
        self,
        caller: Caller,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
        is_process: bool,
    ) -> None:
        """Runs a coroutine in this thread to its end, or until `stop`, and settles the future.

        Args:
          is_process: it was spawned, and is not a method of a service.
        """
        current.caller, node = caller, caller.node
        if not node.observer:
            self._waits[node] = None
        try:
            while not self._stopping.is_set():
                self._wait(node, coroutine.send(None))
            coroutine.close()
        except StopIteration as stop:
            future.set_result(stop.value)
        except Exception as error:
            self.failed.append(future)
            lost = is_process and not future.watched()
            future.set_error(error)
            if lost:  # rule 7: a process that fails while nobody awaits it ends the run
                self.stop()
        finally:
            self._waits.pop(node, None)

    def stuck(self) -> tuple[int, dict[str, Future[Any]]] | None:
        """Who waits for what, if everyone waits and nobody serves or sleeps.

        Returns:
          How many times coroutines were resumed so far, and the waits by the name of the node;
          None if something can still happen.
        """
        waits = dict(self._waits)
        found = {node.name: w for node, w in waits.items() if w is not None and not w.done()}
        if self.serving or self.sleeping or not waits or len(found) < len(waits):
            return None
        return self._wakes, found

    def raise_lost_error(self) -> None:
        """Raises the first error of a future that nobody awaited."""
        for future in self.failed:
            if not future.awaited:
                future.result()

    def _wait(self, node: Any, future: Future[Any]) -> None:
        gate = threading.Event()
        future.on_done(gate.set)
        if not node.observer:
            self._waits[node] = future
        while not gate.wait(POLL_S) and not self._stopping.is_set():
            pass
        if not node.observer:
            self._waits[node] = None
            self._wakes += 1
