"""The virtual cluster: one thread, one virtual clock, a heap of events, real gradients.

Same cluster, seeds and program: same bytes. Two heaps: what the modelled program does,
and what it does not notice (observers, deaths to come). When the first is empty and
mains still wait, nothing can wake them any more: that is a deadlock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal, final

from dbjax.errors import DeadlockError, NodeDied, ServiceError
from dbjax.runtime.base import Future, describe_deadlock
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.sizes import size_bytes
from dbjax.runtime.virtual_node import VirtualNode, service_time_s
from dbjax.trace import Trace

Event = tuple[float, int, Callable[[Any], object], Any]
MainFn = Callable[..., Coroutine[Any, Any, Any]]


@final
class VirtualRuntime:
    """A `Runtime` in virtual time (see `dbjax.runtime.base` for the rules)."""

    clock: Literal["virtual", "wall"] = "virtual"

    def __init__(
        self, cluster: Cluster | None = None, *, seed: int = 0, trace: Trace | None = None
    ) -> None:
        self.cluster = cluster or Cluster()
        self.seed = seed
        self.trace = trace
        self.now_s = 0.0
        self.driver = VirtualNode(self, "driver", observer=True)
        self.active = self.driver  # the node whose code is running
        self.failed: list[Future[Any]] = []  # futures that hold an error, awaited or not
        self._events: list[Event] = []
        self._unnoticed: list[Event] = []
        self._order = itertools.count()
        self._nodes: dict[str, VirtualNode] = {}
        self._mains: list[_Main] = []
        self._running = 0
        self._stopping = False

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        node = self._node(name)
        return _Service(self, node, make(node, *args, **kwargs))

    def spawn(self, name: str, main: MainFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        node = self._node(name)
        task = _Main(self, node, lambda: main(node, *args, **kwargs))
        task.future.on_done(lambda: self._main_ended(task))
        self._mains.append(task)
        self._running += 1
        self.at(self.now_s, task.start, None)
        for failure in self.cluster.failures:
            if failure.node == name:
                self.at(failure.at_s, task.die, (None, failure.back_s), unnoticed=True)
        task.plan_failure()
        return task.future

    def observe(self, name: str, main: MainFn, /, *args: Any, **kwargs: Any) -> None:
        node = VirtualNode(self, name, observer=True)
        task = _Main(self, node, lambda: main(node, *args, **kwargs))
        task.future.on_done(lambda: self._stop_if_lost(task))
        self.at(self.now_s, task.start, None, unnoticed=True)

    def stop(self) -> None:
        self._stopping = True

    def run(self, until_s: float = math.inf) -> float:
        self._stopping = False
        events, unnoticed, pop = self._events, self._unnoticed, heapq.heappop
        end_s = self.now_s
        while events and not self._stopping:
            heap = unnoticed if self._running and unnoticed and unnoticed[0] < events[0] else events
            if heap[0][0] > until_s:
                self.now_s = until_s
                break
            self.now_s, _, do, argument = pop(heap)
            if self._running:
                end_s = self.now_s
            do(argument)
        self.active = self.driver
        self._raise_lost_error()
        if self._running and not events:
            self._raise_deadlock()
        return until_s if self._running and not self._stopping else end_s

    def at(
        self, time_s: float, do: Callable[[Any], object], argument: Any, *, unnoticed: bool = False
    ) -> None:
        """Schedules `do(argument)`; ties go to what was scheduled first."""
        heap = self._unnoticed if unnoticed else self._events
        heapq.heappush(heap, (time_s, next(self._order), do, argument))

    def send(
        self,
        source: VirtualNode,
        target: VirtualNode,
        size: int,
        deliver: Callable[[Any], object],
        message: Any,
    ) -> None:
        """Delivers over two cards, each one transfer at a time and in order.

        The sender's card is busy first; `latency_s` later the receiver's, as soon as it
        is free. Both for size / bandwidth, of the slower card: they work at once.
        """
        if source is target:
            self.at(self.now_s, deliver, message)
            return
        bandwidth = min(source.machine.bandwidth_bytes_per_s, target.machine.bandwidth_bytes_per_s)
        wire_s = size * self.cluster.size_scale / bandwidth
        begin_s = max(self.now_s, source.egress_free_s)
        source.egress_free_s = begin_s + wire_s
        first_byte_s = begin_s + self.cluster.latency_s
        self.at(first_byte_s, self._receive, (target, wire_s, deliver, message))

    def _receive(self, arrival: tuple[VirtualNode, float, Callable[[Any], object], Any]) -> None:
        target, wire_s, deliver, message = arrival
        free_s = target.ingress_free_s
        if wire_s == 0 and free_s < self.now_s:
            deliver(message)
        else:  # at equal times too what came before is delivered first: it is in the heap
            end_s = target.ingress_free_s = max(self.now_s, free_s) + wire_s
            self.at(end_s, deliver, message)

    def _node(self, name: str) -> VirtualNode:
        if name not in self._nodes:
            self._nodes[name] = VirtualNode(self, name)
        return self._nodes[name]

    def _main_ended(self, main: _Main) -> None:
        self._running -= 1
        self._stop_if_lost(main)

    def _stop_if_lost(self, main: _Main) -> None:
        """Rule 7: a main that fails while nobody awaits it ends the run at once."""
        error = main.future.error()
        if error and not isinstance(error, NodeDied) and not main.future.watched():
            self._stopping = True

    def _raise_lost_error(self) -> None:
        failed, self.failed = self.failed, []
        for future in failed:
            if not future.awaited:
                future.result()

    def _raise_deadlock(self) -> None:
        waits = {main.node.name: main.waiting for main in self._mains if not main.future.done()}
        raise DeadlockError(describe_deadlock(self.now_s, waits))


@final
class _Drive:
    """Runs a coroutine on a node, from one wait to the next."""

    __slots__ = ("_coroutine", "_future", "_node", "_runtime", "waiting")

    def __init__(
        self,
        runtime: VirtualRuntime,
        node: VirtualNode,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
    ) -> None:
        self._runtime, self._node, self._future = runtime, node, future
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
        self.waiting: Future[Any] | None = None
        self.resume()

    def resume(self) -> None:
        if self._coroutine is None:  # killed while it waited
            return
        self._runtime.active = self._node
        try:
            self.waiting = self._coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._future.set_result(stop.value)
        except Exception as error:
            self._coroutine = None
            self._runtime.failed.append(self._future)
            self._future.set_error(error)
        else:
            self.waiting.on_done(self.resume)

    def kill(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None


@final
class _Main:
    """What was spawned on a node, through all the lives of that node."""

    def __init__(
        self,
        runtime: VirtualRuntime,
        node: VirtualNode,
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        self.runtime, self.node, self.make = runtime, node, make
        self.future: Future[Any] = Future(("end", node.name))
        self._drive: _Drive | None = None

    @property
    def waiting(self) -> Future[Any] | None:
        return self._drive.waiting if self._drive is not None else None

    def start(self, _: object) -> None:
        self._drive = _Drive(self.runtime, self.node, self.make(), self.future)

    def plan_failure(self) -> None:
        """Draws when the node dies next, and when it is back."""
        machine = self.node.machine
        if math.isfinite(machine.mean_time_between_failures_s):
            draws = self.node.draws
            at_s = self.runtime.now_s + draws.exponential(machine.mean_time_between_failures_s)
            repair_s = machine.mean_time_to_repair_s
            repair_s = draws.exponential(repair_s) if math.isfinite(repair_s) else math.inf
            death = (self.node.incarnation, at_s + repair_s)
            self.runtime.at(at_s, self.die, death, unnoticed=True)

    def die(self, death: tuple[int | None, float]) -> None:
        """Stops, for ever or until `back_s`; what was sent before still arrives."""
        life, back_s = death
        if self._drive is None or self.future.done() or life not in (None, self.node.incarnation):
            return
        self._drive.kill()
        self._drive = None
        self.node.record(event="died")
        if math.isfinite(back_s):
            self.runtime.at(back_s, self._return, None)
        else:
            self.future.set_error(NodeDied(f"{self.node.name} died for good"))

    def _return(self, _: object) -> None:
        self.node.incarnation += 1
        self.node.record(event="returned")
        self.plan_failure()
        self.start(None)


@final
class _Call:
    """One message to a service, and the future of its reply."""

    __slots__ = ("args", "future", "kwargs", "method", "sent_s", "size", "source")

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: VirtualNode,
        sent_s: float,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.source, self.sent_s, self.future = source, sent_s, future
        self.size = size_bytes(args) + (size_bytes(kwargs) if kwargs else 0)


@final
class _Service:
    """A `Handle`, and the queue of calls that its service serves one at a time."""

    def __init__(self, runtime: VirtualRuntime, node: VirtualNode, service: Any) -> None:
        self.runtime, self.node, self.service, self.name = runtime, node, service, node.name
        self._queue: deque[_Call] = deque()
        self._busy = False

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        runtime = self.runtime
        source = runtime.active
        name = method.__name__
        future: Future[Any] = Future((name, self.name))
        call = _Call(name, args, kwargs, source, runtime.now_s, future)
        if source.observer:
            self._answer_observer(call)
        else:
            runtime.send(source, self.node, call.size, self._arrive, call)
        return future

    def _answer_observer(self, call: _Call) -> None:
        """At once, out of turn, outside the model: evaluation must not perturb a run."""
        try:
            call.future.set_result(getattr(self.service, call.method)(*call.args, **call.kwargs))
        except Exception as error:
            self._reply(call, None, error)

    def _arrive(self, call: _Call) -> None:
        self._queue.append(call)
        if not self._busy:
            self._serve()

    def _serve(self) -> None:
        """Serves what waits, until a call takes time."""
        runtime, queue = self.runtime, self._queue
        while queue:
            call = queue.popleft()
            runtime.active = self.node
            try:
                value = getattr(self.service, call.method)(*call.args, **call.kwargs)
            except Exception as error:
                self._reply(call, None, error)
                continue
            if isinstance(value, Coroutine):
                self._busy = True
                self._serve_coroutine(call, value)
                return
            busy_s = service_time_s(runtime.cluster, call.size)
            if runtime.trace is not None:
                runtime.trace.span(self.name, call.method, runtime.now_s, runtime.now_s + busy_s)
            if busy_s > 0:
                self._busy = True
                runtime.at(runtime.now_s + busy_s, self._served, (call, value))
                return
            self._deliver(call, value)
        self._busy = False

    def _served(self, served: tuple[_Call, Any]) -> None:
        self._deliver(*served)
        self._serve()

    def _deliver(self, call: _Call, value: Any) -> None:
        """Replies with the value, or when a deferred one is settled."""
        if isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
        else:
            self._reply(call, value, None)

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        begin_s, outcome = self.runtime.now_s, Future[Any]((call.method, self.name))

        def ended() -> None:
            if self.runtime.trace is not None:
                self.runtime.trace.span(self.name, call.method, begin_s, self.runtime.now_s)
            self._reply_with(call, outcome)
            self._serve()

        outcome.on_done(ended)
        _Drive(self.runtime, self.node, coroutine, outcome)

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            self._reply(call, outcome.result(), None)
        except Exception as error:
            self._reply(call, None, error)

    def _reply(self, call: _Call, value: Any, error: Exception | None) -> None:
        runtime = self.runtime
        if error is not None:
            failure = ServiceError(
                f"{self.name}.{call.method}, called by {call.source.name}, "
                f"failed at {runtime.now_s:g} s: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            runtime.failed.append(call.future)
            runtime.send(self.node, call.source, 0, call.future.set_error, failure)
        elif call.source.observer:
            call.future.set_result(value)
        else:
            size = 0 if value is None else size_bytes(value)
            runtime.send(self.node, call.source, size, self._settle, (call, value))

    def _settle(self, reply: tuple[_Call, Any]) -> None:
        call, value = reply
        runtime = self.runtime
        if runtime.trace is not None:
            runtime.trace.span(call.source.name, call.method, call.sent_s, runtime.now_s)
        call.future.set_result(value)
