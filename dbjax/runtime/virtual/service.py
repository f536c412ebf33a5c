"""Services on virtual nodes. A service has a queue of calls, which it serves one at a time."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, final

from dbjax.errors import NodeDied, ServiceError
from dbjax.runtime.context import (
    Caller,
    calling_as,
    changes_what_follows,
    current,
    journaled,
    number_call,
    number_wait,
)
from dbjax.runtime.event_log import OBSERVER, ServiceStream
from dbjax.runtime.interface import Future, SavedState, ready, size_bytes
from dbjax.runtime.virtual.failures import FailureInjector
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.network import Network
from dbjax.runtime.virtual.node import VirtualNode, service_time_s
from dbjax.runtime.virtual.process import CoroutineDriver, Steppable
from dbjax.runtime.virtual.simulator import Simulator


@final
class _Call:
    """A message to a service, and the future of its reply.

    Attributes:
      method: the name of the method.
      incarnation: the incarnation of the caller that made the call.
      number: the caller's number of the call.
      attempt: how often the caller had made the call before.
      sent_s: when it was made, in seconds on the clock.
      future: the future of the reply.
      size: the size of the arguments, in bytes.
      lost: whether the service's node failed before it answered the call.
    """

    __slots__ = (
        "args",
        "attempt",
        "caller",
        "future",
        "incarnation",
        "kwargs",
        "lost",
        "method",
        "number",
        "sent_s",
        "size",
    )

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        number: int,
        attempt: int,
        sent_s: float,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.caller, self.incarnation = caller, caller.incarnation
        self.number, self.attempt = number, attempt
        self.sent_s, self.future = sent_s, future
        self.size = size_bytes(kwargs) if kwargs else 0
        for argument in args:
            self.size += size_bytes(argument)
        self.lost = False

    def on(self, service: Any) -> Any:
        """Calls the method of the service."""
        method = getattr(service, self.method)
        return method(*self.args, **self.kwargs) if self.kwargs else method(*self.args)


@final
class VirtualService:
    """A `Handle`, with the queue of calls that its service serves one at a time.

    Args:
      simulator: the simulator of the run.
      network: carries calls and replies.
      node: the node of the service.
      caller: makes the service's own calls.
      failures: decides when the node fails.
      make: makes the service from its checkpointed state, if there is one, at the beginning and
        whenever its node comes back.
      saved: returns the latest checkpointed state; None: there is none.
    """

    def __init__(
        self,
        simulator: Simulator,
        network: Network,
        node: VirtualNode,
        caller: Caller,
        failures: FailureInjector,
        make: Callable[[Any], Any],
        saved: Callable[[], SavedState | None],
    ) -> None:
        self._simulator = simulator
        self.node, self.name, self._make, self._saved = node, node.name, make, saved
        self._caller, self._failures = caller, failures
        self._interface, self._send = node.interface, network.send
        self._service_s = simulator.cluster.service_s
        self._stream = caller.observations.events
        saved_state = saved()
        with calling_as(self._caller):
            self.service = make(saved_state and saved_state.state)
        self._queue: deque[_Call] = deque()
        self._busy = False
        self._driver: CoroutineDriver | None = None
        failures.add(self)
        self._unanswered: dict[_Call, None] = {}
        self._waiting_for_return: list[_Call] = []

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        caller = current.caller
        if caller.journal is None:
            return self._call(caller, method.__name__, args, kwargs)
        return caller.journal.given(self._call, caller, method.__name__, args, kwargs)

    def _call(
        self, caller: Caller, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        future: Future[Any] = Future((method, self.name))
        number, attempt = number_call(caller)
        call = _Call(method, args, kwargs, caller, number, attempt, self._simulator.now_s, future)
        if caller.node.observer:
            self._answer_observer(call)
        else:
            self._send(caller.node.interface, self._interface, call.size, self._arrive, call)
        return future

    @journaled
    def up(self) -> Future[None]:
        caller, now_s = current.caller, self._simulator.now_s
        if self._failures.alive and not caller.is_service:
            return ready(None)
        future: Future[None] = Future(("return", self.name))
        call = _Call("up", (), {}, caller, *number_wait(caller), now_s, future)
        if self._failures.alive:  # a service is given all answers between the calls that it serves
            self._simulator.at(now_s, self._settle, (call, None))
        else:
            self._waiting_for_return.append(call)
        return future

    def over(self) -> bool:
        """Returns False: a service never ends by itself."""
        return False

    def died(self, for_good: bool) -> None:
        """Fails all unanswered calls, since its node has failed."""
        self._caller.fail()
        if self._driver is not None:
            self._driver.kill()
        self._queue.clear()
        self._busy = False
        lost, self._unanswered = self._unanswered, {}
        for call in lost:
            call.lost = True
            self._refuse(call)

    def returned(self) -> None:
        """Makes the service again, since its node is back."""
        self._make_again()
        waiting, self._waiting_for_return = self._waiting_for_return, []
        for call in waiting:
            if call.caller.node.observer:
                call.future.set_result(None)
            else:
                self._send(
                    self._interface, call.caller.node.interface, 0, self._settle, (call, None)
                )

    def revive(self) -> None:
        """Makes the service again after a run, if its node is down."""
        if not self._failures.alive:
            self._failures.alive = True
            self.node.come_back()
            self._make_again()

    def journal(self) -> JournaledCoroutine | None:
        """Returns the journal of the coroutine that serves a call; None if there is none."""
        return self._driver.journal() if self._driver is not None else None

    def fast_forward(self) -> None:
        """Brings the coroutine that serves a call in a restored run to the wait where it stood."""
        journal = self.journal()
        if self._driver is None or journal is None:
            return
        for name, value in (journal.attributes or {}).items():
            setattr(self.service, name, value)
        self._driver.fast_forward(journal.call.on(self.service))

    def _make_again(self) -> None:
        """Makes the service from the latest checkpointed state, as its next incarnation."""
        caller, saved = self._caller, self._saved()
        state, call = saved or SavedState(None)
        caller.observations = caller.observations.again(call)
        self._stream = caller.observations.events
        with calling_as(caller):
            self.service = self._make(state)

    def _answer_observer(self, call: _Call) -> None:
        """Answers at once, out of turn and outside the model: observers must not perturb a run."""
        if not self._failures.alive:
            call.future.set_error(NodeDied(f"{self.name} is down"))
            return
        events = self._stream
        if events is not None and changes_what_follows(call.caller, call.method, call.args):
            self._record(events, call)
        try:
            call.future.set_result(call.on(self.service))
        except Exception as error:
            self._fail(call, error)

    def _arrive(self, call: _Call) -> None:
        if not self._failures.alive:
            self._refuse(call)
            return
        self._unanswered[call] = None
        if self._busy:
            self._queue.append(call)
        else:
            self._serve(call)

    def _continue(self) -> None:
        """Serves the calls that have waited while the service was busy, until one takes time."""
        self._busy = False
        queue = self._queue
        while queue and not self._busy:
            self._serve(queue.popleft())

    def _serve(self, call: _Call) -> None:
        """Serves a call. The service is busy afterwards if that takes time."""
        events = self._stream
        current.caller = self._caller
        if events is not None:
            self._record(events, call)
        try:
            value = call.on(self.service)
        except Exception as error:
            if events is not None:
                events.served(error)
            self._fail(call, error)
            return
        if events is not None:
            events.served(value)
        if isinstance(value, CoroutineType):
            self._busy = True
            self._serve_coroutine(call, value)
            return
        simulator, node = self._simulator, self.node
        traffic_bytes = call.size + node.memory_traffic_bytes
        busy_s = self._service_s
        if traffic_bytes:
            busy_s = service_time_s(simulator.cluster, traffic_bytes)
            node.memory_traffic_bytes = 0
        if simulator.spans is not None:
            now_s = simulator.now_s
            simulator.spans.span(self.name, call.method, now_s, now_s + busy_s)
        if busy_s > 0:
            self._busy = True
            simulator.at(simulator.now_s + busy_s, self._served, (call, value))
        else:
            self._reply(call, value)

    def _record(self, events: ServiceStream, call: _Call) -> None:
        """Records that the call is served now."""
        life = OBSERVER if call.caller.node.observer else call.incarnation
        events.serve(call.caller.label, life, call.number, call.attempt)

    def _served(self, served: tuple[_Call, Any]) -> None:
        if not served[0].lost:
            self._reply(*served)
            self._continue()

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        simulator = self._simulator
        begin_s = simulator.now_s
        outcome: Future[Any] = Future((call.method, self.name))

        def ended() -> None:
            self._driver = None
            if simulator.spans is not None:
                simulator.spans.span(self.name, call.method, begin_s, simulator.now_s)
            self._reply_with(call, outcome)
            self._continue()

        outcome.on_done(ended)
        steps: Steppable = coroutine
        if simulator.journals:
            attributes = _shallow_copies(vars(self.service))
            steps = JournaledCoroutine(self._caller, coroutine, call, attributes)
        driver = CoroutineDriver(simulator, self._caller, steps, outcome)
        if not outcome.done():
            self._driver = driver

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            value = outcome.result()
        except Exception as error:
            self._fail(call, error)
        else:
            self._reply(call, value)

    def _reply(self, call: _Call, value: Any) -> None:
        """Answers a call with a value. A deferred reply is sent once it is settled."""
        if isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
            return
        if call.lost:
            return
        self._unanswered.pop(call, None)
        caller = call.caller.node
        if caller.observer:
            call.future.set_result(value)
        else:
            self._send(
                self._interface, caller.interface, size_bytes(value), self._settle, (call, value)
            )

    def _fail(self, call: _Call, error: Exception) -> None:
        """Answers a call with the error that its method has raised."""
        if call.lost:
            return
        self._unanswered.pop(call, None)
        caller = call.caller.node
        failure = ServiceError(
            f"{self.name}.{call.method}, called by {caller.name}, "
            f"failed at {self._simulator.now_s:g} s: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        self._simulator.failed.append((call.future, failure))
        if caller.observer:
            call.future.set_error(failure)
        else:
            self._send_error(call, failure)

    def _refuse(self, call: _Call) -> None:
        """Tells the caller that the node has failed, as a broken connection would."""
        self._send_error(call, NodeDied(f"{self.name} died before it answered {call.method}"))

    def _send_error(self, call: _Call, error: Exception) -> None:
        self._send(
            self._interface, call.caller.node.interface, 0, self._settle_error, (call, error)
        )

    def _settle(self, reply: tuple[_Call, Any]) -> None:
        """Gives the caller its answer, unless it has failed since it made the call."""
        call, value = reply
        caller, simulator = call.caller, self._simulator
        if call.incarnation != caller.incarnation:
            return
        if simulator.log is not None:
            caller.observations.answered(call.number, call.attempt, died=False)
        if simulator.spans is not None and call.method != "up":
            simulator.spans.span(caller.node.name, call.method, call.sent_s, simulator.now_s)
        call.future.set_result(value)

    def _settle_error(self, reply: tuple[_Call, Exception]) -> None:
        """Gives the caller an error, unless it has failed since it made the call."""
        call, error = reply
        if call.incarnation != call.caller.incarnation:
            return
        if self._simulator.log is not None:
            died = isinstance(error, NodeDied)
            call.caller.observations.answered(call.number, call.attempt, died=died)
        call.future.set_error(error)


def _shallow_copies(attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes, with copies of containers, which the service may change later."""
    containers = (dict, list, set, deque)
    return {
        name: copy.copy(value) if isinstance(value, containers) else value
        for name, value in attributes.items()
    }
