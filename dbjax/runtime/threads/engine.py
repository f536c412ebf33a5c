"""The state that the threads of a run share: its clock, its waits, the driving of coroutines."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Coroutine
from typing import Any, final

from dbjax.runtime.context import DRIVER, Caller, current
from dbjax.runtime.interface import Future
from dbjax.runtime.trace import Trace

POLL_S = 0.1  # how often a waiting thread checks for the end, a deadlock, or a stop


@final
class Engine:
    """The state that a run's nodes, services and threads share.

    Args:
      seed: the seed of the program.
      trace: collects rows and spans; None: they are not collected.
      begin_s: the time on the clock at the beginning, in seconds.
      incarnation: how many times the run was resumed.

    Attributes:
      returned: whether this operating-system process is a later incarnation of its node.
      alone: whether no replica of the run is in another operating-system process.
      services: every service that this process can call, by name.
      failed: the futures that hold an error, whether or not anyone awaits them.
      pool: the threads for service methods that are coroutines.
      threads: the number of the run's processes that have a thread here.
      sleeping: the number of nodes that sleep.
      computing: the nodes that have computed something.
      serving: the services that are serving a call.
    """

    def __init__(self, seed: int, trace: Trace | None, begin_s: float, incarnation: int) -> None:
        self.seed, self.trace, self.incarnation = seed, trace, incarnation
        self.returned = False
        self.single_replica = True
        self.services: dict[str, Any] = {}
        self.failed: list[Future[Any]] = []
        self.pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="service")
        self.threads = 0
        self.sleeping = 0
        self.computing: set[Any] = set()
        self.serving: set[Any] = set()
        self._before_s, self._begin_s = begin_s, time.perf_counter()
        self._stopping = threading.Event()
        self._waits: dict[Any, Future[Any] | None] = {}  # for every node whose coroutine runs
        self._wakes = 0

    def now_s(self) -> float:
        """Returns the seconds since the run began."""
        return time.perf_counter() - self._begin_s + self._before_s

    def start_clock(self, now_s: float) -> None:
        """Sets the clock to `now_s`, counted from where the run began or was resumed."""
        self._begin_s = time.perf_counter() - now_s

    def reset(self) -> None:
        """Prepares for a run."""
        self._stopping.clear()

    def stop(self) -> None:
        """Ends the run: no coroutine is resumed any more."""
        self._stopping.set()

    def stopping(self) -> bool:
        """Returns whether the run is over, or was ended by an error that nobody awaits."""
        return self._stopping.is_set()

    def over(self) -> bool:
        """Returns whether the run is over for the node whose code this thread runs.

        Then the futures that the node gets are never done. So even a process that would never
        have to wait, because everything it asks for is there at once, comes to an end.
        """
        return self._stopping.is_set() and current.caller is not DRIVER

    def waits_for_numerics(self) -> bool:
        """Returns whether `compute` must wait until jax has computed the result.

        It must if several nodes compute: otherwise, a node that fetched parameters which depend on
        another node's unfinished gradient would wait for that gradient, and nothing would be
        asynchronous. A single node may be one computation ahead of jax, unless spans are timed.
        """
        several = not self.single_replica or max(self.threads, len(self.computing)) > 1
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
          caller: the process or the service that runs the coroutine.
          coroutine: the coroutine.
          future: the future of what the coroutine returns.
          is_process: whether the coroutine is a process, rather than a method of a service.
        """
        current.caller, node = caller, caller.node
        if not node.observer:
            self._waits[node] = None
        try:
            while not self._stopping.is_set():
                self._wait(caller, coroutine.send(None))
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
        """Returns who waits for what, if all processes wait and no service serves a call.

        Returns:
          How many times coroutines were resumed so far, and the awaited futures by the name of the
          node; None if something can still happen.
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

    def _wait(self, caller: Caller, future: Future[Any]) -> None:
        node = caller.node
        if not node.observer:
            self._waits[node] = future
        if caller.turn is not None:
            caller.turn.wait(future, self._stopping.is_set)
        else:
            gate = threading.Event()
            future.on_done(gate.set)
            while not gate.wait(POLL_S) and not self._stopping.is_set():
                pass
        if not node.observer:
            self._waits[node] = None
            self._wakes += 1
