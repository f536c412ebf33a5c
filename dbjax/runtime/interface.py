"""The interface between algorithms and machines: futures, handles, nodes, runtimes.

This is not asyncio. Algorithms are `async def` so that mypy types every wait and finds every
forgotten one, and a reader sees each point where control can change hands. But the futures, and
whatever drives the coroutines, are dbjax's own: a virtual cluster with its own clock (`virtual`),
threads (`threads`), or processes (`ray`). Nothing here may import asyncio.

Rules of the execution model, on every runtime:

1. Calling starts; awaiting waits.
2. A service serves one call at a time, in order of arrival. Between two nodes, messages keep
   their order: a small fetch never overtakes a large push.
3. Calls are dispatched by method name, so a subclass's method is the one that runs.
4. What crosses a call is never mutated or donated afterwards, by either side.
5. `Node.compute` runs real numerics; the runtime supplies the duration.
6. Calls form a directed acyclic graph: coordinator -> replicas -> shards.
7. No failure is lost: `run` raises the first error that nobody awaited, and a run whose remaining
   processes all wait for what cannot come raises a DeadlockError that names each of them. (The
   failure of a node is no failure of the program: its callers learn of it, and nobody else.)
8. Versions travel with parameters.
9. Randomness is folded from (seed, node name): the streams are the same on every runtime.
10. Algorithms know nothing of bytes or seconds: sizes come from arrays, times from the `Cluster`.
11. Timing enters in two places: the order in which services serve calls, and what `now`,
    `is_done`, `first` and `arrivals` return. A run that records both (`event_log`) can be replayed.

A service method may be a plain function (it is served at once), a coroutine function (the service
is busy until it ends), or return a `Future` (a deferred reply: the service goes on serving, and the
reply leaves when the future is settled).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import (
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
    runtime_checkable,
)

import numpy as np

from dbjax.runtime.context import Caller as Caller
from dbjax.runtime.context import calling_as as calling_as
from dbjax.runtime.context import current as current
from dbjax.runtime.context import journaled as journaled
from dbjax.runtime.futures import ArrivalQueue as ArrivalQueue
from dbjax.runtime.futures import Arrivals as Arrivals
from dbjax.runtime.futures import Future as Future
from dbjax.runtime.futures import all_of as all_of
from dbjax.runtime.futures import first_of as first_of
from dbjax.runtime.futures import ready as ready

T = TypeVar("T")
S_co = TypeVar("S_co", covariant=True)
P = ParamSpec("P")


@runtime_checkable
class CompilesAhead(Protocol):
    """An argument of a process or a service that can be compiled before it is used.

    Where time is real, it is compiled in the process that uses it, before the clock starts.
    """

    def compile_ahead(self) -> None: ...


class Handle(Protocol[S_co]):
    """A reference to a service of class S on some node."""

    @property
    def name(self) -> str: ...

    @overload
    def call(
        self,
        method: Callable[Concatenate[S_co, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]: ...
    @overload
    def call(
        self,
        method: Callable[Concatenate[S_co, P], Future[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]: ...
    @overload
    def call(
        self,
        method: Callable[Concatenate[S_co, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]: ...

    def up(self) -> Future[None]:
        """Is done when the service is there: at once, or when its node has come back."""


class Node(Protocol):
    """What a process or a service sees of the machine that it runs on."""

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """How many times this node has come back after a failure, or the run was resumed."""

    @property
    def returned(self) -> bool:
        """Whether the node has come back after a failure in this run."""

    def now(self) -> float:
        """Seconds since the run began, on this runtime's clock."""

    def compute(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a pure function; the future is done when the machine would be."""

    def sleep(self, seconds: float) -> Future[None]: ...

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        """The index of the first future to be done, or None if `timeout_s` passes before."""

    def is_done(self, future: Future[Any]) -> Future[bool]:
        """Whether the future is done. Await the answer, which comes at once.

        `Future.done` tells the same, but nothing records what it returned: a program that calls it
        cannot be replayed.
        """

    def arrivals(self, label: object) -> Arrivals[Any]:
        """For taking futures one by one as they are done; a deadlock report shows the label."""

    def random(self) -> np.random.Generator:
        """A fresh generator, the same for the same (seed, node name, incarnation)."""

    def record(self, **values: Any) -> None:
        """Adds a row of metrics to the run's trace, stamped with the node and the time."""

    def service(self, name: str) -> Handle[Any]:
        """The service of that name, wherever it runs."""

    def save_progress(self, state: Any) -> None:
        """Saves what a process knows at the beginning of its loop; nobody may change it afterwards.

        When a run is resumed exactly (`dbjax.checkpoint`), its processes are started anew: they
        begin with the state that they saved last, and are given again everything that they were
        given since. A process that saves nothing is given everything again from its beginning.
        Futures in the state forget who waits for them.
        """

    def saved_progress(self) -> Any:
        """What the process saved before it was started anew, or None. Call it before all else."""

    def count_memory_traffic(self, arrays: Any) -> None:
        """Says that the call being served reads or writes these arrays beside its arguments."""


class Runtime(Protocol):
    """Where nodes live.

    Attributes:
      clock: "virtual" if time is modelled, "wall" if it is real.
      latest_states: the latest checkpointed state of each service, by the name of that state.
    """

    clock: Literal["virtual", "wall"]
    latest_states: dict[str, Any]

    @property
    def nodes_can_fail(self) -> bool:
        """Whether nodes may fail, so that calls may go unanswered."""

    @property
    def defers_arithmetic(self) -> bool:
        """Whether arithmetic may be put off until somebody looks at its result.

        It may where durations are modelled: then many small computations can be done as one.
        """

    def serve(
        self,
        name: str,
        make: Callable[Concatenate[Node, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Handle[T]:
        """Places a service, `make(node, ...)`, on a node of that name.

        The node may fail, and with it goes everything that the service knew. The calls that it has
        not answered by then, and those that come while it is down, fail with `NodeDied`. When the
        node comes back, the service is made anew.
        """

    def serve_restorable(
        self,
        name: str,
        state_name: str,
        make: Callable[..., T],
        /,
        *args: Any,
    ) -> Handle[T]:
        """Places a service that begins with a checkpointed state: `make(node, state, ...)`.

        The state is the one that `latest_states` has under `state_name` whenever the service is
        made, or None.
        """

    def spawn(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Starts a process, `main(node, ...)`, on a node of that name."""

    def observe(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Starts an observer: a process outside the cluster.

        Nobody waits for it, and what it does costs no model time.
        """

    def run(self, until_s: float = float("inf")) -> float:
        """Runs until every spawned process has ended or the clock says `until_s`.

        Returns:
          The time, in seconds, at which it stopped.

        Raises:
          DeadlockError: the processes that are left wait for what cannot come.
          Exception: the first error that nobody awaited.
        """

    def stop(self) -> None:
        """Ends `run` at the next chance, as if `until_s` had come."""

    def nodes(self) -> list[str]:
        """The names of all nodes except observers."""

    def kill(self, name: str) -> None:
        """Makes a node fail, as if its machine had lost power.

        Raises:
          ValueError: there is no such node, or nodes of this runtime cannot fail.
        """

    def between_events(self, do: Callable[[], object]) -> None:
        """Calls `do` when no program runs; at once where there is no such moment."""

    def cards_busy_s(self) -> dict[str, float]:
        """How many seconds network cards were busy so far: means, by kind of node and direction.

        Empty where cards are real, since nobody measures them.
        """

    def revive(self) -> None:
        """After a run: brings back what is down, so that it can be asked for what it knows."""

    def close(self) -> None:
        """Ends whatever goes on outside this process; nothing answers afterwards."""


def node_generator(seed: int, name: str, incarnation: int = 0) -> np.random.Generator:
    """Rule 9: one independent stream for each (seed, node name, incarnation)."""
    return np.random.default_rng([seed, incarnation, *name.encode()])


def describe_deadlock(time_s: float, waits: Mapping[str, Future[Any] | None]) -> str:
    """One line that says which process waits for what."""

    def label(future: Future[Any] | None) -> str:
        if future is None:
            return "its node to come back"
        return " of ".join(future.label) if isinstance(future.label, tuple) else str(future.label)

    names = "; ".join(f"{name} waits for {label(future)}" for name, future in waits.items())
    return f"at {time_s:g} s nothing can happen any more, but {names}"


_SCALARS = (int, float, bool)


def size_bytes(message: Any, scalar_bytes: int = 0) -> int:
    """The size of a message: the sum over its arrays, in containers, dataclasses, or `nbytes`.

    Args:
      scalar_bytes: the size of a number. With 0, names weigh nothing either: the model's
        `latency_s` and `service_s` stand for them. Otherwise, a letter of a name is one byte.
    """
    if message is None:
        return 0
    if isinstance(message, _SCALARS):
        return scalar_bytes
    if isinstance(message, str):
        return len(message) if scalar_bytes else 0
    size = getattr(message, "nbytes", None)
    if size is not None:
        return int(size)
    if isinstance(message, dict):
        message = tuple(message.items()) if scalar_bytes else tuple(message.values())
    if isinstance(message, (tuple, list)):
        return sum(size_bytes(part, scalar_bytes) for part in message)
    if dataclasses.is_dataclass(message):
        fields = dataclasses.fields(message)
        return sum(size_bytes(getattr(message, field.name), scalar_bytes) for field in fields)
    return scalar_bytes
