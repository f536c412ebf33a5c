"""A service on a virtual node: its queue of calls, served one at a time."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, final

from dbjax.errors import NodeDied, ServiceError
from dbjax.runtime.context import Caller, calling_as, current, of_service
from dbjax.runtime.interface import Future, ready
from dbjax.runtime.message_size import size_bytes
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.node import VirtualNode, service_time_s
from dbjax.runtime.virtual.process import CoroutineDriver, Steppable

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class _Call:
    """One message to a service, and the future of its reply."""

    __slots__ = (
        "args",
        "caller",
        "future",
        "incarnation",
        "kwargs",
        "lost",
        "method",
        "number",
        "sent_s",
        "size",
        "source",
    )

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        number: int,
        sent_s: float,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.caller, self.incarnation, self.source = caller, caller.incarnation, caller.node
        self.number = number
        self.sent_s, self.future = sent_s, future
        self.size = size_bytes(args) + (size_bytes(kwargs) if kwargs else 0)
        self.lost = False  # the service died with it


@final
class Service:
    """A `Handle`, and the queue of calls that its service serves one at a time."""

    def __init__(self, runtime: VirtualRuntime, node: VirtualNode, make: Callable[[], Any]) -> None:
        self.runtime, self.node, self.name, self._make = runtime, node, node.name, make
        self._caller = runtime.caller(node, of_service(node.name))
        self._log = runtime.log.served(node.name) if runtime.log else None
        self._replay_order = runtime.replay_order(node.name)
        with calling_as(self._caller):
            self.service = make()
        self._queue: deque[_Call] = deque()
        self._busy = False
        self._drive: CoroutineDriver | None = None
        self._failures = runtime.failure_injector(node)
        self._failures.add(self)
        self._unanswered: dict[_Call, None] = {}
        self._hoping: list[_Call] = []

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        caller = current.caller
        if caller.journal is not None:
            return caller.journal.given(self.call, method, *args, **kwargs)
        runtime = self.runtime
        name = method.__name__
        future: Future[Any] = Future((name, self.name))
        call = _Call(name, args, kwargs, caller, caller.number(), runtime.now_s, future)
        if call.source.observer:
            self._answer_observer(call)
        else:
            runtime.network.send(call.source, self.node, call.size, self._arrive, call)
        return future

    def up(self) -> Future[None]:
        journal = current.caller.journal
        if journal is not None:
            return journal.given(self.up)
        if self._failures.alive:
            return ready(None)
        future: Future[None] = Future(("return", self.name))
        self._hoping.append(_Call("up", (), {}, current.caller, 0, self.runtime.now_s, future))
        return future

    def over(self) -> bool:
        return False

    def died(self, for_good: bool) -> None:
        self._caller.incarnation += 1
        if self._drive is not None:
            self._drive.kill()
        self._queue.clear()
        self._busy = False
        lost, self._unanswered = self._unanswered, {}
        for call in lost:
            call.lost = True
            self._refuse(call)

    def returned(self) -> None:
        with calling_as(self._caller):
            self.service = self._make()
        hoping, self._hoping = self._hoping, []
        for hope in hoping:
            if hope.source.observer:
                hope.future.set_result(None)
            else:
                self.runtime.network.send(self.node, hope.source, 0, self._settle, (hope, None))

    def revive(self) -> None:
        """After the run: if it is dead, as it would come back."""
        if not self._failures.alive:
            self._failures.alive = True
            self.node.come_back()
            with calling_as(self._caller):
                self.service = self._make()

    def _refuse(self, call: _Call) -> None:
        """What a caller sees of a broken connection."""
        error = NodeDied(f"{self.name} died before it answered {call.method}")
        self.runtime.network.send(self.node, call.source, 0, self._settle, (call, error))

    def _answer_observer(self, call: _Call) -> None:
        """At once, out of turn, outside the model: evaluation must not perturb a run."""
        if not self._failures.alive:
            call.future.set_error(NodeDied(f"{self.name} is dead"))
            return
        try:
            call.future.set_result(getattr(self.service, call.method)(*call.args, **call.kwargs))
        except Exception as error:
            self._reply(call, None, error)

    def _arrive(self, call: _Call) -> None:
        if not self._failures.alive:
            self._refuse(call)
            return
        self._unanswered[call] = None
        if self._replay_order is None:
            self._queue.append(call)
        else:
            self._queue += self._replay_order.due(call.caller.label, call.number, call)
        if not self._busy:
            self._serve()

    def _serve(self) -> None:
        """Serves what waits, until a call takes time."""
        runtime, queue = self.runtime, self._queue
        while queue:
            call = queue.popleft()
            current.caller = self._caller
            try:
                value = getattr(self.service, call.method)(*call.args, **call.kwargs)
            except Exception as error:
                self._note(call, error)
                self._reply(call, None, error)
                continue
            self._note(call, value)
            if isinstance(value, Coroutine):
                self._busy = True
                self._serve_coroutine(call, value)
                return
            busy_s = service_time_s(runtime.cluster, call.size + self.node.memory_traffic_bytes)
            self.node.memory_traffic_bytes = 0
            if runtime.trace is not None:
                runtime.trace.span(self.name, call.method, runtime.now_s, runtime.now_s + busy_s)
            if busy_s > 0:
                self._busy = True
                runtime.at(runtime.now_s + busy_s, self._served, (call, value))
                return
            self._deliver(call, value)
        self._busy = False

    def _note(self, call: _Call, reply: Any) -> None:
        if self._log is not None:
            self._log.add(call.caller.label, call.number, reply)
        if self._replay_order is not None:
            self._replay_order.check(reply)

    def _served(self, served: tuple[_Call, Any]) -> None:
        if not served[0].lost:
            self._deliver(*served)
            self._serve()

    def _deliver(self, call: _Call, value: Any) -> None:
        """Replies with the value, or when a deferred one is settled."""
        if isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
        else:
            self._reply(call, value, None)

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        begin_s = self.runtime.now_s
        outcome: Future[Any] = Future((call.method, self.name))

        def ended() -> None:
            self._drive = None
            if self.runtime.trace is not None:
                self.runtime.trace.span(self.name, call.method, begin_s, self.runtime.now_s)
            self._reply_with(call, outcome)
            self._serve()

        outcome.on_done(ended)
        steps: Steppable = coroutine
        if self.runtime.journals:
            steps = JournaledCoroutine(
                self._caller, coroutine, call, _as_they_are(vars(self.service))
            )
        drive = CoroutineDriver(self.runtime, self._caller, steps, outcome)
        if not outcome.done():
            self._drive = drive

    def journal(self) -> JournaledCoroutine | None:
        """Of the coroutine that serves a call, while that lives."""
        return self._drive.journal() if self._drive is not None else None

    def fast_forward(self) -> None:
        """Of a restored run: brings the coroutine that serves a call to where it stood."""
        journal = self.journal()
        if self._drive is None or journal is None:
            return
        for name, value in (journal.attributes or {}).items():
            setattr(self.service, name, value)
        call = journal.call
        self._drive.fast_forward(getattr(self.service, call.method)(*call.args, **call.kwargs))

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            self._reply(call, outcome.result(), None)
        except Exception as error:
            self._reply(call, None, error)

    def _reply(self, call: _Call, value: Any, error: Exception | None) -> None:
        runtime = self.runtime
        if call.lost:
            return
        self._unanswered.pop(call, None)
        if error is not None:
            failure = ServiceError(
                f"{self.name}.{call.method}, called by {call.source.name}, "
                f"failed at {runtime.now_s:g} s: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            runtime.failed.append((call.future, failure))
            if call.source.observer:
                call.future.set_error(failure)
            else:
                runtime.network.send(self.node, call.source, 0, self._settle, (call, failure))
        elif call.source.observer:
            call.future.set_result(value)
        else:
            size = 0 if value is None else size_bytes(value)
            runtime.network.send(self.node, call.source, size, self._settle, (call, value))

    def _settle(self, reply: tuple[_Call, Any]) -> None:
        call, value = reply
        runtime = self.runtime
        if call.incarnation != call.caller.incarnation:
            return  # who called is dead, or another since
        if isinstance(value, (NodeDied, ServiceError)):
            call.future.set_error(value)
            return
        if runtime.trace is not None and call.method != "up":
            runtime.trace.span(call.source.name, call.method, call.sent_s, runtime.now_s)
        call.future.set_result(value)


def _as_they_are(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy that stays as it is while the service goes on."""
    containers = (dict, list, set, deque)
    return {
        name: copy.copy(value) if isinstance(value, containers) else value
        for name, value in attributes.items()
    }
