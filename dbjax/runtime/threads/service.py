"""Services of the threads runtime. The thread that calls an idle service serves the call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, final

from dbjax.errors import ServiceError
from dbjax.runtime.context import Caller, current
from dbjax.runtime.event_log import Served
from dbjax.runtime.interface import Future, ready
from dbjax.runtime.threads.engine import Engine


@final
class ThreadService:
    """A `Handle`, with the queue of calls that its service serves one at a time.

    Args:
      engine: the state that the threads share.
      name: the name of the service.
      service: the service.
      caller: makes the service's own calls.
      log: records the order of its calls; None: the order is not recorded.
    """

    def __init__(
        self, engine: Engine, name: str, service: Any, caller: Caller, log: Served | None
    ) -> None:
        self._engine, self.name, self.service = engine, name, service
        self._caller, self._log = caller, log
        self._queue: deque[Callable[[], bool]] = deque()
        self._turn = threading.Lock()  # held by the thread that serves

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

    def _serve_waiting(self) -> None:
        """Serves the queued calls in order of arrival, unless another thread already does.

        It checks the queue again after it has released the lock: a call that another thread has
        queued in between would otherwise wait forever.
        """
        while self._queue and self._turn.acquire(blocking=False):
            self._engine.serving.add(self)
            handed_on = bool(self._queue) and self._queue.popleft()()
            self._engine.serving.discard(self)
            if handed_on:
                return
            self._turn.release()

    def _serve(self, call: _Call) -> bool:
        """Serves a call; returns whether a thread of the pool has taken over the lock."""
        engine = self._engine
        begin_s = engine.now_s()
        before, current.caller = current.caller, self._caller
        try:
            value = getattr(self.service, call.method)(*call.args, **call.kwargs)
        except Exception as error:
            self._record(call, error)
            self._fail(call, error)
            return False
        finally:
            current.caller = before
        self._record(call, value)
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

    def _record(self, call: _Call, reply: Any) -> None:
        if self._log is not None and not call.caller.node.observer:
            self._log.add(call.caller.label, call.number, reply)

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
        call.future.set_result(value)

    def _fail(self, call: _Call, error: Exception) -> None:
        failure = ServiceError(
            f"{self.name}.{call.method}, called by {call.caller.label}, failed at "
            f"{self._engine.now_s():g} s: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        self._engine.failed.append(call.future)
        call.future.set_error(failure)


@final
class _Call:
    """A message to a service, and the future of its reply."""

    __slots__ = ("args", "caller", "future", "kwargs", "method", "number", "sent_s")

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
        self.caller, self.number, self.future = caller, caller.number(), future
