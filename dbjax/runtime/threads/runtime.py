"""The threads runtime: a thread for every process, within one operating-system process.

A service has no thread of its own. The thread that calls an idle service serves the call, and then
the calls that others have queued meanwhile, so an uncontended call needs no switch of threads. Only
methods that are coroutines, and so may take long, are served in the threads of a pool.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, final

from dbjax.errors import DeadlockError
from dbjax.runtime.context import Caller, of_service
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import CompilesAhead, Future, SavedState, describe_deadlock
from dbjax.runtime.recording import LiveObservations, Observations, RecordedObservations
from dbjax.runtime.threads.engine import POLL_S, Engine
from dbjax.runtime.threads.node import ThreadNode
from dbjax.runtime.threads.service import ThreadService
from dbjax.runtime.trace import Trace

ProcessFn = Callable[..., Coroutine[Any, Any, Any]]


@final
class ThreadsRuntime:
    """A `Runtime` of threads (see `dbjax.runtime.interface` for the rules).

    Args:
      seed: the seed of the program.
      trace: collects rows and spans; None: they are not collected.
      log: records the order in which services serve calls, and what nodes see of time; None:
        nothing is recorded.
      begin_s: the time on the clock at the beginning; above 0 in a resumed run.
      incarnation: how many times the run was resumed, not counting exact resumptions.

    Attributes:
      engine: the state that the threads share.
      latest_states: the latest checkpointed state of each service, by name.
    """

    clock: Literal["virtual", "wall"] = "wall"
    defers_arithmetic = False
    recorder = None
    nodes_can_fail = False  # a node fails only together with this operating-system process

    def __init__(
        self,
        *,
        seed: int = 0,
        trace: Trace | None = None,
        log: EventLog | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
    ) -> None:
        self.engine, self._log = Engine(seed, trace, begin_s, incarnation), log
        self.latest_states: dict[str, SavedState] = {}
        self._process_threads: list[threading.Thread] = []
        self._observer_threads: list[threading.Thread] = []
        self._given: list[Any] = []  # the arguments of services and processes

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._given += (*args, *kwargs.values())
        return self._serve(name, lambda node: make(node, *args, **kwargs))

    def serve_restorable(
        self, name: str, state_name: str, make: Callable[..., Any], /, *args: Any
    ) -> Any:
        self._given += args
        saved = self.latest_states.get(state_name, SavedState(None))
        return self._serve(name, lambda node: make(node, saved.state, *args), saved.call)

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future(("end", name))
        self._given += (*args, *kwargs.values())
        node = ThreadNode(self.engine, name)
        thread = self._thread(node, lambda: main(node, *args, **kwargs), future)
        self._process_threads.append(thread)
        self.engine.threads = len(self._process_threads)
        return future

    def spawn_group(
        self, names: Sequence[str], main: ProcessFn, /, *args: Any, **kwargs: Any
    ) -> list[Future[Any]]:
        raise ValueError(
            f"{names[0]}: a replica of several processes needs runtime='ray', not 'threads'"
        )

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        node = ThreadNode(self.engine, name, observer=True)
        thread = self._thread(node, lambda: main(node, *args, **kwargs), Future())
        self._observer_threads.append(thread)

    def stop(self) -> None:
        self.engine.stop()

    def nodes(self) -> list[str]:
        names = (*self.engine.services, *(thread.name for thread in self._process_threads))
        return list(dict.fromkeys(names))

    def kill(self, name: str, *, hang: bool = False) -> bool:
        raise ValueError(
            f"kill({name!r}): nodes of runtime='threads' cannot fail; use virtual or ray"
        )

    def between_events(self, do: Callable[[], object]) -> None:
        do()

    def cards_busy_s(self) -> dict[str, float]:
        return {}

    def revive(self) -> None:
        """Does nothing, since nodes cannot fail."""

    def close(self) -> None:
        """Does nothing, since nothing runs outside this process."""

    def run(self, until_s: float = math.inf) -> float:
        self.engine.reset()
        self.compile_ahead()
        self.start()
        deadlock = self._join_processes(until_s)
        end_s = self.engine.now_s()
        self.finish()
        if deadlock is not None:
            raise deadlock
        return min(end_s, until_s)

    def compile_ahead(self) -> None:
        """Compiles those arguments of services and processes that can be (`CompilesAhead`)."""
        given, self._given = self._given, []
        for thing in {id(thing): thing for thing in given}.values():
            if isinstance(thing, CompilesAhead) and not self.engine.stopping():
                thing.compile_ahead()

    def start(self, now_s: float = 0.0) -> None:
        """Starts all threads, and sets the clock to `now_s` seconds after the run began."""
        self.engine.start_clock(now_s)
        for thread in (*self._process_threads, *self._observer_threads):
            thread.start()

    def finish(self) -> None:
        """Stops all threads, and raises the first error that nobody awaited."""
        self.stop()
        for thread in (*self._process_threads, *self._observer_threads):
            if thread.ident is not None:  # the run may be stopped before its threads start
                thread.join()
        self._process_threads, self._observer_threads = [], []
        self.engine.threads = 0
        self.engine.raise_lost_error()

    def _serve(
        self, name: str, make: Callable[[ThreadNode], Any], state: int | None = None
    ) -> ThreadService:
        caller = self._caller(ThreadNode(self.engine, name), of_service(name), name, state)
        made = ThreadService(self.engine, name, caller, lambda: make(caller.node))
        self.engine.services[name] = made
        return made

    def _thread(
        self, node: ThreadNode, begin: Callable[[], Coroutine[Any, Any, Any]], future: Future[Any]
    ) -> threading.Thread:
        caller = self._caller(node, node.name)
        return threading.Thread(
            target=lambda: self.engine.drive(caller, begin(), future, True),
            name=node.name,
            daemon=True,
        )

    def _join_processes(self, until_s: float) -> DeadlockError | None:
        engine, before = self.engine, None
        while any(thread.is_alive() for thread in self._process_threads):
            if engine.stopping() or engine.now_s() >= until_s:
                return None
            stuck = engine.stuck()
            if stuck is not None and stuck == before:  # unchanged for a whole POLL_S
                return DeadlockError(describe_deadlock(engine.now_s(), stuck[1]))
            before = stuck
            self._wait_for_an_end(min(POLL_S, until_s - engine.now_s()))
        return None

    def _wait_for_an_end(self, timeout_s: float) -> None:
        for thread in self._process_threads:
            if thread.is_alive():
                thread.join(max(0.0, timeout_s))
                return

    def _caller(
        self, node: ThreadNode, label: str, service: str | None = None, state: int | None = None
    ) -> Caller:
        incarnation = self.engine.incarnation
        observations: Observations = LiveObservations()
        if self._log is not None and not node.observer:
            observations = RecordedObservations(self._log, label, incarnation, service, state)
        is_service = service is not None
        return Caller(node, label, observations, is_service=is_service, incarnation=incarnation)
