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
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, final

import jax
import numpy as np

from dbjax.errors import DeadlockError, ServiceError
from dbjax.runtime.base import Future, describe_deadlock, first_of, node_generator, ready
from dbjax.trace import Trace

MainFn = Callable[..., Coroutine[Any, Any, Any]]
_POLL_S = 0.1  # how often `run` looks for the end, a deadlock, or a stop


class _Here(threading.local):
    name = "driver"  # the node whose code this thread runs


_here = _Here()


@final
class ThreadsRuntime:
    """A `Runtime` of threads (see `dbjax.runtime.base` for the rules)."""

    clock: Literal["virtual", "wall"] = "wall"

    def __init__(self, *, seed: int = 0, trace: Trace | None = None) -> None:
        self.seed, self.trace = seed, trace
        self.failed: list[Future[Any]] = []  # futures that hold an error, awaited or not
        self.pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="service")
        self._begin_s = time.perf_counter()
        self._stopping = threading.Event()
        self._mains: list[threading.Thread] = []
        self._observers: list[threading.Thread] = []
        self._waits: dict[ThreadNode, Future[Any] | None] = {}  # of every running coroutine
        self.sleeping = 0
        self._wakes = 0

    def now_s(self) -> float:
        return time.perf_counter() - self._begin_s

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return _Service(self, name, make(ThreadNode(self, name), *args, **kwargs))

    def spawn(self, name: str, main: MainFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future(("end", name))
        node = ThreadNode(self, name)
        thread = threading.Thread(
            target=lambda: self.drive(node, main(node, *args, **kwargs), future, True),
            name=name,
            daemon=True,
        )
        self._mains.append(thread)
        return future

    def observe(self, name: str, main: MainFn, /, *args: Any, **kwargs: Any) -> None:
        node = ThreadNode(self, name, observer=True)
        thread = threading.Thread(
            target=lambda: self.drive(node, main(node, *args, **kwargs), Future(), True),
            name=name,
            daemon=True,
        )
        self._observers.append(thread)

    def stop(self) -> None:
        self._stopping.set()

    def over(self) -> bool:
        """Whether the run is over for the node whose code this thread runs.

        What such a node starts is never done, so that a main which never has to wait, since
        all it asks for is there at once, ends too.
        """
        return self._stopping.is_set() and _here.name != _Here.name

    def waits_for_numerics(self) -> bool:
        """Whether a computation must have ended when its future is done.

        With several mains it must: whoever fetched parameters that still wait for another's
        gradient would wait for it too, and nothing would be asynchronous. A single main
        may be one computation ahead of its arrays, as jax is, unless spans are to be timed.
        """
        return len(self._mains) > 1 or (self.trace is not None and self.trace.max_spans > 0)

    def run(self, until_s: float = math.inf) -> float:
        self._stopping.clear()
        self._begin_s = time.perf_counter()
        for thread in (*self._mains, *self._observers):
            thread.start()
        deadlock = self._join_mains(until_s)
        end_s = self.now_s()
        self.stop()
        for thread in (*self._mains, *self._observers):
            thread.join()
        self._mains, self._observers = [], []
        for future in self.failed:
            if not future.awaited:
                future.result()
        if deadlock is not None:
            raise deadlock
        return min(end_s, until_s)

    def _join_mains(self, until_s: float) -> DeadlockError | None:
        wakes = -1
        while any(thread.is_alive() for thread in self._mains):
            if self._stopping.is_set() or self.now_s() >= until_s:
                return None
            waits = dict(self._waits)
            stuck = {node.name: w for node, w in waits.items() if w is not None and not w.done()}
            if wakes == self._wakes and len(stuck) == len(waits) > 0 and not self.sleeping:
                return DeadlockError(describe_deadlock(self.now_s(), stuck))
            wakes = self._wakes
            self._wait_for_an_end(min(_POLL_S, until_s - self.now_s()))
        return None

    def _wait_for_an_end(self, timeout_s: float) -> None:
        for thread in self._mains:
            if thread.is_alive():
                thread.join(max(0.0, timeout_s))
                return

    def drive(
        self,
        node: ThreadNode,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
        is_main: bool,
    ) -> None:
        """Runs a coroutine to its end, or to `stop`, in this thread."""
        _here.name = node.name
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


@final
class ThreadNode:
    """A `Node`; its clock is the wall's."""

    def __init__(self, runtime: ThreadsRuntime, name: str, *, observer: bool = False) -> None:
        self.runtime, self.name, self.observer = runtime, name, observer
        self.incarnation = 0
        self._computed: Any = None

    def now(self) -> float:
        return self.runtime.now_s()

    def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.runtime.over():
            return Future("the end")
        begin_s = self.now()
        before, self._computed = self._computed, fn(*args, **kwargs)
        value = self._computed
        jax.block_until_ready(value if self.runtime.waits_for_numerics() else before)
        if self.runtime.trace is not None and not self.observer:
            self.runtime.trace.span(self.name, "compute", begin_s, self.now())
        return ready(value)

    def sleep(self, seconds: float) -> Future[None]:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"sleep({seconds!r}): needs a finite number of seconds, at least 0")
        future: Future[None] = Future("sleep")
        weight = 0 if self.observer else 1
        self.runtime.sleeping += weight

        def wake() -> None:
            self.runtime.sleeping -= weight
            future.set_result(None)

        timer = threading.Timer(seconds, wake)
        timer.daemon = True
        timer.start()
        return future

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        return first_of(futures, None if timeout_s is None else self.sleep(timeout_s))

    def random(self) -> np.random.Generator:
        return node_generator(self.runtime.seed, self.name, self.incarnation)

    def record(self, **values: Any) -> None:
        if self.runtime.trace is not None:
            self.runtime.trace.record(self.name, self.now(), values)


@final
class _Service:
    """A `Handle`, and the queue of calls that its service serves one at a time."""

    def __init__(self, runtime: ThreadsRuntime, name: str, service: Any) -> None:
        self.runtime, self.name, self.service = runtime, name, service
        self._queue: deque[Callable[[], bool]] = deque()
        self._turn = threading.Lock()  # held by the thread that serves

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future((method.__name__, self.name))
        if self.runtime.over():
            return future
        call = _Call(method.__name__, args, kwargs, self.runtime.now_s(), future)
        self._queue.append(lambda: self._serve(call))
        self._serve_waiting()
        return future

    def _serve_waiting(self) -> None:
        """Serves in order of arrival, unless another thread does so already.

        The queue is looked at again after the turn is given back: what another thread
        put there in between would otherwise wait for ever.
        """
        while self._queue and self._turn.acquire(blocking=False):
            handed_on = bool(self._queue) and self._queue.popleft()()
            if handed_on:
                return
            self._turn.release()

    def _serve(self, call: _Call) -> bool:
        """Whether the turn went on to a thread of the pool."""
        begin_s = self.runtime.now_s()
        try:
            value = getattr(self.service, call.method)(*call.args, **call.kwargs)
        except Exception as error:
            self._fail(call, error)
            return False
        if isinstance(value, Coroutine):
            self.runtime.pool.submit(self._serve_coroutine, call, value)
            return True
        if self.runtime.trace is not None:
            self.runtime.trace.span(self.name, call.method, begin_s, self.runtime.now_s())
        if isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
        else:
            self._reply(call, value)
        return False

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        begin_s, outcome = self.runtime.now_s(), Future[Any]((call.method, self.name))
        self.runtime.drive(ThreadNode(self.runtime, self.name), coroutine, outcome, False)
        if self.runtime.trace is not None:
            self.runtime.trace.span(self.name, call.method, begin_s, self.runtime.now_s())
        if outcome.done():  # else the run was stopped
            self._reply_with(call, outcome)
        self._turn.release()
        self._serve_waiting()

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            self._reply(call, outcome.result())
        except Exception as error:
            self._fail(call, error)

    def _reply(self, call: _Call, value: Any) -> None:
        if self.runtime.trace is not None:
            self.runtime.trace.span(call.source, call.method, call.sent_s, self.runtime.now_s())
        call.future.set_result(value)

    def _fail(self, call: _Call, error: Exception) -> None:
        failure = ServiceError(
            f"{self.name}.{call.method}, called by {call.source}, failed at "
            f"{self.runtime.now_s():g} s: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        self.runtime.failed.append(call.future)
        call.future.set_error(failure)


@final
class _Call:
    """One message to a service, and the future of its reply."""

    __slots__ = ("args", "future", "kwargs", "method", "sent_s", "source")

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sent_s: float,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs, self.sent_s = method, args, kwargs, sent_s
        self.source, self.future = _here.name, future
