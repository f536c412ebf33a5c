"""The runtime of replays: services do again, in order, what an event log says that they did.

Every incarnation of a node in the log becomes a node of its own, and all of them are there from the
beginning. They affect each other only by calls, and calls have names (`CallName`). So nobody has to
die at the right moment: a call goes to the incarnation that served it, wherever it is sent, and a
call that nobody served is never answered. Each incarnation therefore ends where its part of the log
does.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, final

from dbjax.errors import DbjaxError, NodeDied, ReplayError, ServiceError
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.context import (
    CHECKPOINT,
    DRIVER,
    Caller,
    calling_as,
    current,
    number_call,
    number_wait,
    of_service,
)
from dbjax.runtime.event_log import (
    Answered,
    CallName,
    Event,
    Incarnation,
    Note,
    Script,
    Served,
    version_of,
)
from dbjax.runtime.interface import Future, SavedState
from dbjax.runtime.node_names import service_name
from dbjax.runtime.recording import EndOfLog, ReplayedObservations
from dbjax.runtime.virtual.node import VirtualNode
from dbjax.runtime.virtual.process import CoroutineDriver, Process
from dbjax.runtime.virtual.simulator import Simulator

ProcessFn = Callable[..., Coroutine[Any, Any, Any]]


@final
class ReplayRuntime:
    """A `Runtime` that repeats a run from its event log (see `dbjax.runtime.interface`).

    Args:
      script: the event log.
      seed: the seed of the program.
      recorder: records arithmetic instead of doing it; None: it is done.

    Attributes:
      clock: "wall", since nothing about the time of a replay is modelled.
      defers_arithmetic: whether the runtime of the run did.
      simulator: the events that have not happened yet.
      latest_states: the states with which all services begin.
    """

    clock: Literal["virtual", "wall"] = "wall"
    nodes_can_fail = True

    def __init__(self, script: Script, *, seed: int = 0, recorder: Any = None) -> None:
        self.defers_arithmetic = script.defers_arithmetic
        self.simulator = Simulator(Cluster(compute_s=0.0).seeded(seed), seed)
        self.recorder = recorder
        if recorder is not None:
            recorder.clock = self.simulator
        self._script, self._last_asked = script, script.last_asked()
        self._handles: dict[str, ReplayHandle] = {}
        self._services: dict[Incarnation, ReplayedService] = {}
        self._of_caller: dict[Caller, ReplayedService] = {}
        self._observations: dict[Caller, ReplayedObservations] = {}
        self._waiting: dict[int, list[ReplayedService]] = collections.defaultdict(list)
        self.latest_states: dict[str, SavedState] = {}

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._serve(name, lambda node, _: make(node, *args, **kwargs))

    def serve_restorable(
        self, name: str, state_name: str, make: Callable[..., Any], /, *args: Any
    ) -> Any:
        return self._serve(name, lambda node, state: make(node, state, *args))

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Runtime`.

        Returns:
          A future of what the last incarnation of the process returns.
        """
        count = self._script.incarnations(name, of_service=False)
        made = [self._process(name, life, main, args, kwargs) for life in range(count)]
        return made[-1].future

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        """Does nothing, since observers change nothing, except as the log says."""

    def run(self, until_s: float = float("inf")) -> float:
        """Replays the log as far as it goes.

        Raises:
          ReplayError: the program does not do what the log says.
          Exception: the first error that nobody awaited.
        """
        try:
            end_s = self.simulator.run(until_s, len(self._services))
            self.simulator.raise_lost_error()
            return end_s
        finally:
            current.caller = DRIVER

    def stop(self) -> None:
        self.simulator.stop()

    def nodes(self) -> list[str]:
        return list(self._handles)

    def kill(self, name: str, *, hang: bool = False) -> bool:
        raise ValueError(f"kill({name!r}): in a replay, nodes fail where the log says so")

    def between_events(self, do: Callable[[], object]) -> None:
        do()

    def cards_busy_s(self) -> dict[str, float]:
        return {}

    def revive(self) -> None:
        """Does nothing, since no node is down."""

    def close(self) -> None:
        """Does nothing, since nothing runs outside this process."""

    def replayed(self) -> int:
        """Returns how many calls were served, without those of observers."""
        return sum(service.replayed for service in self._services.values())

    def soon(self, do: Callable[[], object]) -> None:
        """Calls `do` as the next event but those that are scheduled already."""
        self.simulator.at(self.simulator.now_s, lambda _: do(), None)

    def send(self, call: _Call, to: str) -> None:
        """Takes a call to the incarnation of the service that served it, if any did.

        Args:
          call: the call.
          to: the name of the service that is called. The log may say that its other copy served
            the call, since callers learn at different times which copy is the primary.
        """
        server, own = self._script.server(call.name), self._of_caller.get(call.caller)
        if server in self._services and service_name(server[0]) == service_name(to):
            self.soon(lambda: self._services[server].arrive(call))
        if own is not None:
            own.sent(call)
        elif self._observations[call.caller].dies(*call.name[2:]):
            call.lost = True
            self.soon(lambda: call.future.set_error(NodeDied(f"{to} died before it answered")))

    def reply(self, call: _Call, value: Any, error: Exception | None) -> None:
        """Takes a reply to the caller."""
        own = self._of_caller.get(call.caller)
        if own is not None:
            self.soon(lambda: own.answer_arrives(call, value, error))
        elif not call.lost:
            self.soon(lambda: call.settle(value, error))

    def failed(self, call: _Call, error: Exception) -> None:
        """Records an error, which `run` raises if nobody awaits the call.

        Errors by which services report failures of nodes are none of the program's: their callers
        may have failed, too.
        """
        if not isinstance(error.__cause__, DbjaxError):
            self.simulator.failed.append((call.future, error))

    def answer_driver(self, name: str, method: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Calls a method of the copy of a service that had the result of the run."""
        made = {at: one.service for at, one in self._services.items() if one.made}
        server = self._last_asked.get(service_name(name))
        if server not in made:  # the log breaks off
            server = max(at for at in made if at[0] == name)
        return getattr(made[server], method)(*args, **kwargs)

    def checkpointed(self, call: CallName, state: Any) -> None:
        """Keeps a state that a service returned to an observer, for the services that wait for it.

        If copies were asked one after the other, the last answer counts.
        """
        if self._script.server(call._replace(attempt=call.attempt + 1)) is None:
            for service in self._waiting.pop(call.number, []):
                self.soon(functools.partial(service.begin, state))

    def _serve(self, name: str, make: Callable[[VirtualNode, Any], Any]) -> ReplayHandle:
        for life in range(self._script.incarnations(name, of_service=True)):
            node, label = self._node(name, life), of_service(name)
            caller = self._caller(node, label, life, is_service=True)
            events = self._script.events(name, life)
            made = ReplayedService(self, node, caller, make, events)
            self._services[name, life] = self._of_caller[caller] = made
            state = self._script.state(name, life)
            if not life:
                made.begin(None)
            elif state is None:
                self.soon(functools.partial(made.begin, None))
            else:
                self._waiting[state].append(made)
        handle = self._handles[name] = ReplayHandle(self, name)
        return handle

    def _process(
        self, name: str, life: int, main: ProcessFn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Process:
        node = self._node(name, life)
        caller = self._caller(node, name, life)
        process = Process(self.simulator, node, caller, lambda: main(node, *args, **kwargs))
        self.simulator.at(self.simulator.now_s, process.start, None)
        return process

    def _node(self, name: str, life: int) -> VirtualNode:
        node = VirtualNode(self.simulator, self._handles, name)
        node.incarnation, node.returned = life, life > 0
        return node

    def _caller(
        self, node: VirtualNode, label: str, life: int, *, is_service: bool = False
    ) -> Caller:
        seen = ReplayedObservations(self._script, label, life)
        caller = Caller(node, label, seen, is_service=is_service, incarnation=life)
        self._observations[caller] = seen
        return caller


@final
class ReplayHandle:
    """A `Handle` of a service in a replay."""

    def __init__(self, runtime: ReplayRuntime, name: str) -> None:
        self._runtime, self.name = runtime, name

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        caller, (number, attempt) = current.caller, number_call(current.caller)
        future: Future[Any] = Future((method.__name__, self.name))
        if caller is DRIVER:
            try:
                found = self._runtime.answer_driver(self.name, method.__name__, args, kwargs)
                future.set_result(found)
            except Exception as error:
                future.set_error(_failure(self.name, method.__name__, caller.label, error))
            return future
        name = CallName(caller.label, caller.incarnation, number, attempt)
        call = _Call(name, method.__name__, args, kwargs, caller, future)
        self._runtime.send(call, self.name)
        return future

    def up(self) -> Future[None]:
        """Returns a future that is done soon: how long a caller waited has no effect."""
        caller = current.caller
        future: Future[None] = Future(("return", self.name))
        if not caller.is_service:
            self._runtime.soon(lambda: future.set_result(None))
            return future
        name = CallName(caller.label, caller.incarnation, *number_wait(caller))
        call = _Call(name, "up", (), {}, caller, future)
        self._runtime.send(call, self.name)
        self._runtime.reply(call, None, None)
        return future


@final
class _Call:
    """A call, and the future of its reply.

    Attributes:
      lost: whether the caller learned that the node it called had died.
      answer: the reply and the error, once they have arrived at a service that is the caller.
    """

    def __init__(
        self,
        name: CallName,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        future: Future[Any],
    ) -> None:
        self.name, self.method, self.args, self.kwargs = name, method, args, kwargs
        self.caller, self.future = caller, future
        self.lost = False
        self.answer: tuple[Any, Exception | None] | None = None

    def settle(self, value: Any, error: Exception | None) -> None:
        """Gives the caller the answer."""
        if error is not None:
            self.future.set_error(error)
        else:
            self.future.set_result(value)


@final
class ReplayedService:
    """One incarnation of a service, which goes through its events in the order of the log.

    An event that cannot happen yet holds up those behind it: a call that has not been made, an
    answer that is not there. If it never can, the log is damaged or breaks off.

    Args:
      runtime: the runtime of the replay.
      node: the node of this incarnation.
      caller: makes the service's own calls.
      make: makes the service from the node and a checkpointed state.
      events: the events.

    Attributes:
      service: the service, once it has begun.
      made: whether it has begun.
      replayed: the number of calls that it has served, without those of observers.
    """

    def __init__(
        self,
        runtime: ReplayRuntime,
        node: VirtualNode,
        caller: Caller,
        make: Callable[[VirtualNode, Any], Any],
        events: Sequence[Event],
    ) -> None:
        self._runtime, self._node, self._caller, self._make = runtime, node, caller, make
        self._events = [event for event in events if not isinstance(event, Note)]
        self._next = 0
        self._arrived: dict[CallName, _Call] = {}
        self._sent: dict[tuple[int, int], _Call] = {}
        self._busy = False
        self.service: Any = None
        self.made, self.replayed = False, 0

    def begin(self, state: Any) -> None:
        """Makes the service from its checkpointed state; None: it has none."""
        with calling_as(self._caller):
            self.service = self._make(self._node, state)
        self.made = True
        self._runtime.soon(self._advance)  # when all nodes have been placed

    def arrive(self, call: _Call) -> None:
        """Accepts a call, which is served in its turn."""
        self._arrived[call.name] = call
        self._advance()

    def sent(self, call: _Call) -> None:
        """Remembers a call of the service's own, which is answered in its turn."""
        self._sent[call.name.number, call.name.attempt] = call
        self._runtime.soon(self._advance)

    def answer_arrives(self, call: _Call, value: Any, error: Exception | None) -> None:
        """Accepts the answer to a call of the service's own."""
        call.answer = value, error
        self._advance()

    def _advance(self) -> None:
        """Lets all events happen that can."""
        while self.made and self._next < len(self._events):
            event = self._events[self._next]
            self._next += 1
            if not self._happens(event):
                self._next -= 1
                return

    def _happens(self, event: Event) -> bool:
        if isinstance(event, Answered):
            return self._is_answered(event)
        assert isinstance(event, Served)
        if event.call.of_observer():
            if event.call.for_checkpoint():
                state = getattr(self.service, CHECKPOINT)()
                self._runtime.checkpointed(event.call, state)
            return True
        if self._busy or event.call not in self._arrived:
            return False
        self._serve(self._arrived.pop(event.call), event)
        return True

    def _is_answered(self, event: Answered) -> bool:
        call = self._sent.get((event.number, event.attempt))
        if call is None or (call.answer is None and not event.died):
            return False
        del self._sent[event.number, event.attempt]
        if event.died:
            call.future.set_error(NodeDied("the service died before it answered"))
        elif call.answer is not None:
            call.settle(*call.answer)
        return True

    def _serve(self, call: _Call, event: Served) -> None:
        current.caller = self._caller
        self.replayed += 1
        try:
            value = getattr(self.service, call.method)(*call.args, **call.kwargs)
        except EndOfLog:
            self._events = []
            return
        except Exception as error:
            self._check(event, error)
            self._reply(call, None, error)
            return
        self._check(event, value)
        if isinstance(value, Coroutine):
            self._serve_coroutine(call, value)
        elif isinstance(value, Future):
            value.on_done(lambda: self._reply_with(call, value))
        else:
            self._reply(call, value, None)

    def _serve_coroutine(self, call: _Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        outcome: Future[Any] = Future((call.method, self._node.name))
        self._busy = True

        def ended() -> None:
            self._busy = False
            self._reply_with(call, outcome)
            self._runtime.soon(self._advance)

        outcome.on_done(ended)
        CoroutineDriver(self._runtime.simulator, self._caller, coroutine, outcome)

    def _check(self, event: Served, reply: Any) -> None:
        """Compares the reply to a call with the log.

        Raises:
          ReplayError: the versions differ.
        """
        version, call = version_of(reply), event.call
        if event.version not in (None, version):
            calls = sum(isinstance(event, Served) for event in self._events)
            raise ReplayError(
                f"{self._node.name}, call {self.replayed} of {calls} ({call.caller}'s number "
                f"{call.number}): version {version}, the log says {event.version}: this is not the "
                "program, the data or the machine that wrote the log, or the log is damaged"
            )

    def _reply_with(self, call: _Call, outcome: Future[Any]) -> None:
        try:
            self._reply(call, outcome.result(), None)
        except Exception as error:
            self._reply(call, None, error)

    def _reply(self, call: _Call, value: Any, error: Exception | None) -> None:
        failure = error and _failure(self._node.name, call.method, call.name.caller, error)
        if failure is not None and not call.lost:
            self._runtime.failed(call, failure)
        self._runtime.reply(call, value, failure)


def _failure(service: str, method: str, caller: str, error: Exception) -> ServiceError:
    failure = ServiceError(
        f"{service}.{method}, called by {caller}, failed: {type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure
