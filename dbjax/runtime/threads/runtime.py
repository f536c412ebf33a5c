"""Every main a thread of this process, in real time.

A service has no thread of its own: whoever calls an idle service serves the call, and
then what others have queued meanwhile, so an uncontended call costs no hand-over. Only
a coroutine method, which may take long, is served in a thread of a pool.
"""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, final

from dbjax.errors import DeadlockError
from dbjax.runtime.context import DRIVER, Caller, calling_as, current, of_service
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import CompilesAhead, Future, describe_deadlock
from dbjax.runtime.recording import LiveObservations, RecordedObservations
from dbjax.runtime.threads.node import ThreadNode
from dbjax.runtime.threads.service import Service
from dbjax.runtime.trace import Trace

ProcessFn = Callable[..., Coroutine[Any, Any, Any]]
_POLL_S = 0.1  # how often `run` looks for the end, a deadlock, or a stop


@final
class ThreadsRuntime:
    """A `Runtime` of threads (see `dbjax.runtime.interface` for the rules)."""

    clock: Literal["virtual", "wall"] = "wall"
    nodes_can_fail = False  # nodes of this process die with it

    def __init__(
        self,
        *,
        seed: int = 0,
        trace: Trace | None = None,
        log: EventLog | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
    ) -> None:
        self.seed, self.trace, self.log = seed, trace, log
        self.incarnation, self._before_s = incarnation, begin_s
        self.returned = False  # whether this process is another life of its node
        self.resumed: Callable[[Any], Sequence[Any]] | None = None
        self.alone = True  # no replica of this run lives in another process
        self.failed: list[Future[Any]] = []  # futures that hold an error, awaited or not
        self.pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="service")
        self._begin_s = time.perf_counter()
        self._stopping = threading.Event()
        self._main_threads: list[threading.Thread] = []
        self._observers: list[threading.Thread] = []
        self._waits: dict[ThreadNode, Future[Any] | None] = {}  # of every running coroutine
        self.sleeping = 0
        self.computing: set[ThreadNode] = set()  # nodes that have computed something
        self.serving: set[Service] = set()  # those whose turn is a caller's
        self._wakes = 0
        self._given: list[Any] = []  # to services and mains
        self.services: dict[str, Any] = {}
        self.saved: dict[str, Any] = {}

    def now_s(self) -> float:
        return time.perf_counter() - self._begin_s + self._before_s

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        caller = self._caller(ThreadNode(self, name), of_service(name))
        self._given += (*args, *kwargs.values())
        with calling_as(caller):
            service = make(caller.node, *args, **kwargs)
        self.services[name] = Service(self, name, service, caller)
        return self.services[name]

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future(("end", name))
        self._given += (*args, *kwargs.values())
        caller = self._caller(ThreadNode(self, name), name)
        thread = threading.Thread(
            target=lambda: self.drive(caller, main(caller.node, *args, **kwargs), future, True),
            name=name,
            daemon=True,
        )
        self._main_threads.append(thread)
        return future

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        caller = self._caller(ThreadNode(self, name, observer=True), name)
        thread = threading.Thread(
            target=lambda: self.drive(caller, main(caller.node, *args, **kwargs), Future(), True),
            name=name,
            daemon=True,
        )
        self._observers.append(thread)

    def stop(self) -> None:
        self._stopping.set()

    def nodes(self) -> list[str]:
        return list(
            dict.fromkeys((*self.services, *(thread.name for thread in self._main_threads)))
        )

    def kill(self, name: str) -> None:
        raise ValueError(f"kill({name!r}): nodes of this process die with it; use virtual or ray")

    def between_events(self, do: Callable[[], object]) -> None:
        do()

    def cards_busy_s(self) -> dict[str, float]:
        return {}

    def revive(self) -> None:
        """Nothing dies."""

    def close(self) -> None:
        """Nothing goes on outside this process."""

    def stopping(self) -> bool:
        """Whether the run is over, or an error that nobody awaited ends it."""
        return self._stopping.is_set()

    def over(self) -> bool:
        """Whether the run is over for the node whose code this thread runs.

        What such a node starts is never done, so that a main which never has to wait, since
        all it asks for is there at once, ends too.
        """
        return self._stopping.is_set() and current.caller is not DRIVER

    def waits_for_numerics(self) -> bool:
        """Whether a computation must have ended when its future is done.

        With several nodes that compute it must: whoever fetched parameters that still wait
        for another's gradient would wait for it too, and nothing would be asynchronous. A
        single one may be one computation ahead of its arrays, as jax is, unless spans are to
        be timed.
        """
        several = not self.alone or max(len(self._main_threads), len(self.computing)) > 1
        return several or (self.trace is not None and self.trace.max_spans > 0)

    def run(self, until_s: float = math.inf) -> float:
        self._stopping.clear()
        self.compile_ahead()
        self.start()
        deadlock = self._join_mains(until_s)
        end_s = self.now_s()
        self.finish()
        if deadlock is not None:
            raise deadlock
        return min(end_s, until_s)

    def compile_ahead(self) -> None:
        """What services and mains were given, before the clock starts (`CompilesAhead`)."""
        given, self._given = self._given, []
        for thing in {id(thing): thing for thing in given}.values():
            if isinstance(thing, CompilesAhead) and not self._stopping.is_set():
                thing.compile_ahead()

    def start(self, now_s: float = 0.0) -> None:
        """Starts all threads; it is `now_s` by the run's clock."""
        self._begin_s = time.perf_counter() - now_s
        for thread in (*self._main_threads, *self._observers):
            thread.start()

    def finish(self) -> None:
        """Stops all threads, and raises the first error that nobody awaited."""
        self.stop()
        for thread in (*self._main_threads, *self._observers):
            if (
                thread.ident is not None
            ):  # a process that returns may be told to end before it began
                thread.join()
        self._main_threads, self._observers = [], []
        for future in self.failed:
            if not future.awaited:
                future.result()

    def _join_mains(self, until_s: float) -> DeadlockError | None:
        before = None
        while any(thread.is_alive() for thread in self._main_threads):
            if self._stopping.is_set() or self.now_s() >= until_s:
                return None
            stuck = self._stuck()
            if stuck is not None and stuck == before:  # for a whole poll, not between two steps
                return DeadlockError(describe_deadlock(self.now_s(), stuck[1]))
            before = stuck
            self._wait_for_an_end(min(_POLL_S, until_s - self.now_s()))
        return None

    def _stuck(self) -> tuple[int, dict[str, Future[Any]]] | None:
        """Who waits for what, if all do, nobody serves or sleeps; and the number of wakes."""
        waits = dict(self._waits)
        found = {node.name: w for node, w in waits.items() if w is not None and not w.done()}
        if self.serving or self.sleeping or not waits or len(found) < len(waits):
            return None
        return self._wakes, found

    def _wait_for_an_end(self, timeout_s: float) -> None:
        for thread in self._main_threads:
            if thread.is_alive():
                thread.join(max(0.0, timeout_s))
                return

    def _caller(self, node: ThreadNode, label: str) -> Caller:
        if self.log is None or node.observer:
            return Caller(node, label, LiveObservations())
        return Caller(node, label, RecordedObservations(self.log.seen(label)))

    def drive(
        self,
        caller: Caller,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
        is_main: bool,
    ) -> None:
        """Runs a coroutine to its end, or to `stop`, in this thread."""
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
            lost = is_main and not future.watched()
            future.set_error(error)
            if lost:  # rule 7: a main that fails while nobody awaits it ends the run
                self.stop()
        finally:
            self._waits.pop(node, None)

    def _wait(self, node: ThreadNode, future: Future[Any]) -> None:
        gate = threading.Event()
        future.on_done(gate.set)
        if not node.observer:
            self._waits[node] = future
        while not gate.wait(_POLL_S) and not self._stopping.is_set():
            pass
        if not node.observer:
            self._waits[node] = None
            self._wakes += 1
