"""Services of the threads runtime. The thread that calls an idle service serves the call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, final

from dbjax.errors import ServiceError
from dbjax.runtime.context import (
    Caller,
    calling_as,
    changes_what_follows,
    current,
    number_call,
)
from dbjax.runtime.event_log import OBSERVER, ServiceStream
from dbjax.runtime.interface import Future, ready
from dbjax.runtime.threads.engine import POLL_S, Engine


@final
class ThreadService:
    """A `Handle`, with the queue of calls that its service serves one at a time.

    Between two calls, the service is given the answers to its own calls.

    Args:
      engine: the state that the threads share.
      name: the name of the service.
      caller: makes the service's own calls.
      make: makes the service.
    """

    def __init__(self, engine: Engine, name: str, caller: Caller, make: Callable[[], Any]) -> None:
        self._engine, self.name, self._caller = engine, name, caller
        self._stream = caller.observations.events
        self._queue: deque[Callable[[], bool]] = deque()
        self._answers: deque[Callable[[], None]] = deque()
        self._turn = threading.Lock()  # held by the thread that serves
        self._gate: threading.Event | None = None  # at which a coroutine waits that is served
        caller.turn = self
        with self._turn, calling_as(caller):
            self.service = make()
        self._serve_waiting()

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.take(method.__name__, args, kwargs)

    def take(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Makes a call, by the name of the method, for the caller whose code this thread runs."""
        future: Future[Any] = Future((method, self.name))
        if self._engine.over():
            return future
        call = _Call(method, args, kwargs, current.caller, self._engine.now_s(), future)
        self._queue.append(lambda: self._serve(call))
        self._serve_waiting()
        return future

    def up(self) -> Future[None]:
        return ready(None)

    def answer(self, settle: Callable[[], None]) -> None:
        """See `Turn`: a coroutine that waits is woken, and takes the answer in its own thread."""
        self._answers.append(settle)
        gate = self._gate
        if gate is not None:
            gate.set()
        else:
            self._serve_waiting()

    def wait(self, future: Future[Any], stopping: Callable[[], bool]) -> None:
        """Makes the coroutine that is being served wait for a future, and gives it answers."""
        gate = self._gate = threading.Event()
        future.on_done(gate.set)
        self._give_answers()
        while not future.done() and not stopping():
            gate.wait(POLL_S)
            gate.clear()
            self._give_answers()
        self._gate = None

    def _serve_waiting(self) -> None:
        """Serves the queued calls in order of arrival, unless another thread already does.

        It checks the queues again after it has released the lock: a call that another thread has
        queued in between would otherwise wait forever.
        """
        while (self._queue or self._answers) and self._turn.acquire(blocking=False):
            self._engine.serving.add(self)
            if self._answers:
                self._give_answers()
            handed_on = bool(self._queue) and self._queue.popleft()()
            self._engine.serving.discard(self)
            if handed_on:
                return
            self._turn.release()

    def _give_answers(self) -> None:
        """Gives the service the answers that have arrived. This thread has the turn."""
        while self._answers:
            with calling_as(self._caller):
                self._answers.popleft()()

    def _serve(self, call: _Call) -> bool:
        """Serves a call; returns whether a thread of the pool has taken over the lock."""
        engine = self._engine
        begin_s = engine.now_s()
        before, current.caller = current.caller, self._caller
        events = self._stream and self._record(self._stream, call)
        try:
            value = getattr(self.service, call.method)(*call.args, **call.kwargs)
        except Exception as error:
            if events is not None:
                events.served(error)
            self._fail(call, error)
            return False
        finally:
            current.caller = before
        if events is not None:
            events.served(value)
        if isinstance(value, Coroutine):
            engine.pool.submit(self._serve_coroutine, call, value)
            return True
        if engine.trace is not None:
            engine.trace.span(self.name, call.method, begin_s, engine.now_s())
        if isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
        else:
            self._reply(call, value)
        return False

    def _record(self, events: ServiceStream, call: _Call) -> ServiceStream | None:
        """Records that a call is served now; returns the stream that is to record its reply."""
        caller, incarnation = call.caller, call.caller.incarnation
        if caller.node.observer:
            if not changes_what_follows(caller, call.method, call.args):
                return None
            incarnation = OBSERVER
        events.serve(caller.label, incarnation, call.number, call.attempt)
        return events

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        engine = self._engine
        begin_s = engine.now_s()
        outcome: Future[Any] = Future((call.method, self.name))
        engine.drive(self._caller, coroutine, outcome, False)
        if engine.trace is not None:
            engine.trace.span(self.name, call.method, begin_s, engine.now_s())
        if outcome.done():  # otherwise the run was stopped
            self._reply_with(call, outcome)
        self._turn.release()
        self._serve_waiting()

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            self._reply(call, outcome.result())
        except Exception as error:
            self._fail(call, error)

    def _reply(self, call: _Call, value: Any) -> None:
        node, engine = call.caller.node, self._engine
        if engine.trace is not None and not node.elsewhere:
            engine.trace.span(node.name, call.method, call.sent_s, engine.now_s())
        if call.caller.turn is None:
            call.future.set_result(value)
        else:
            call.answer(lambda: call.future.set_result(value))

    def _fail(self, call: _Call, error: Exception) -> None:
        failure = ServiceError(
            f"{self.name}.{call.method}, called by {call.caller.label}, failed at "
            f"{self._engine.now_s():g} s: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        self._engine.failed.append(call.future)
        call.answer(lambda: call.future.set_error(failure))


@final
class _Call:
    """A message to a service, and the future of its reply."""

    __slots__ = ("args", "attempt", "caller", "future", "kwargs", "method", "number", "sent_s")

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        sent_s: float,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs, self.sent_s = method, args, kwargs, sent_s
        self.caller, self.future = caller, future
        self.number, self.attempt = number_call(caller)

    def answer(self, settle: Callable[[], None]) -> None:
        """Gives the caller the answer, by way of `settle`."""
        self.caller.answered(self.number, self.attempt, settle)
