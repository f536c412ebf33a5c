"""The seam between algorithms and machines: futures, handles, nodes, runtimes.

This is not asyncio. Algorithms are `async def` so that mypy types every wait, finds
every forgotten one, and a reader sees each point where control can change hands; but
the futures, and whoever drives the coroutines, are ours: a virtual cluster with a
clock of its own (`virtual`), or threads (`threads`). Nothing here may import asyncio.

Rules of the execution model, on every runtime:

1. Calling starts; awaiting waits.
2. A service serves one call at a time, in order of arrival. Between two nodes, messages
   keep their order: a small fetch never overtakes a large push.
3. Calls go by method name, so a subclass's method is the one that runs.
4. What crosses a call is never mutated or donated afterwards, by either side.
5. `Node.compute` runs real numerics; the runtime supplies the duration.
6. Calls form a directed acyclic graph: coordinator -> replicas -> shards.
7. No failure is lost: `run` raises the first error that nobody awaited, and a run whose
   remaining mains all wait for what cannot come raises a DeadlockError naming each. (A
   death is no failure of the program: who called the dead learns of it, nobody else.)
8. Versions travel with parameters.
9. Randomness is folded from (seed, node name): the same streams on every runtime.
10. Algorithms know nothing of bytes or seconds: sizes come from arrays, times from the
    `Cluster`.
11. Timing enters in two places: the order in which services serve calls, and what `now`,
    `is_done`, `first` and `arrivals` say. With both written down (`event_log`), a run can be
    replayed.

A service method may be a plain function (served at once), a coroutine function (the
service is busy until it ends), or return a `Future` (a deferred reply: the service goes
on serving, the reply leaves when the future is settled).
"""

from __future__ import annotations

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
from dbjax.runtime.futures import ArrivalQueue as ArrivalQueue
from dbjax.runtime.futures import Arrivals as Arrivals
from dbjax.runtime.futures import Future as Future
from dbjax.runtime.futures import all_of as all_of
from dbjax.runtime.futures import first_of as first_of
from dbjax.runtime.futures import ready as ready

T = TypeVar("T")
S_co = TypeVar("S_co", covariant=True)
P = ParamSpec("P")


def describe_deadlock(time_s: float, waits: Mapping[str, Future[Any] | None]) -> str:
    """One line: which main waits for what."""

    def label(future: Future[Any] | None) -> str:
        if future is None:
            return "its node to come back"
        return " of ".join(future.label) if isinstance(future.label, tuple) else str(future.label)

    names = "; ".join(f"{name} waits for {label(future)}" for name, future in waits.items())
    return f"at {time_s:g} s nothing can happen any more, but {names}"


@runtime_checkable
class CompilesAhead(Protocol):
    """An argument of a main or a service that can be compiled before it is used.

    Where time is real, it is, in the process that uses it, before the clock starts.
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
        """Done when the service is there: at once, or when its node is back from the dead."""


class Node(Protocol):
    """What a main or a service sees of the machine it lives on."""

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """How often this node has come back from the dead, or the run was taken up."""

    @property
    def returned(self) -> bool:
        """Whether it has come back from the dead in this run."""

    def now(self) -> float:
        """Seconds since the run began, on this runtime's clock."""

    def compute(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a pure function; the future is done when the machine would be."""

    def sleep(self, seconds: float) -> Future[None]: ...

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        """The index of the first to be done, or None when `timeout_s` passes before."""

    def is_done(self, future: Future[Any]) -> Future[bool]:
        """Whether it is done; to be awaited, and answered at once.

        `Future.done` says so too, but nothing writes down what it said: a program that asks
        it can not be replayed.
        """

    def arrivals(self, label: object) -> Arrivals[Any]:
        """For taking futures one by one; `label` is what a deadlock report calls them."""

    def random(self) -> np.random.Generator:
        """A fresh generator, the same for the same (seed, node name, incarnation)."""

    def record(self, **values: Any) -> None:
        """Adds a row of metrics, stamped with node and time, to the run's trace."""

    def service(self, name: str) -> Handle[Any]:
        """The service of that name, wherever it is."""

    def saved(self, name: str) -> Any:
        """What the last checkpoint holds of a service, or None."""

    def save_progress(self, state: Any) -> None:
        """Says what a main knows, where its loop begins; not changed by anyone afterwards.

        A run that is taken up exactly (`dbjax.checkpoint`) makes its mains anew: they begin with
        what they kept, and are given again what they were given since. A main that keeps
        nothing is given everything again, from the beginning of its life. Futures that are kept
        forget who waits for them.
        """

    def saved_progress(self) -> Any:
        """What the main kept before it was made anew, or None. Nothing may be asked before."""

    def count_memory_traffic(self, arrays: Any) -> None:
        """Says that the call being served reads or writes these, beside its arguments."""


class Runtime(Protocol):
    """Where nodes live."""

    clock: Literal["virtual", "wall"]

    @property
    def nodes_can_fail(self) -> bool:
        """Whether nodes may die."""

    saved: dict[str, Any]  # what the last checkpoint holds, by the name of the service
    resumed: (
        Callable[[Any], Sequence[Any]] | None
    )  # partition -> states of its shards to begin with

    def serve(
        self,
        name: str,
        make: Callable[Concatenate[Node, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Handle[T]:
        """Places a service, `make(node, ...)`, on a node of that name.

        The node may die, and with it all that the service knew. Calls that it has not answered
        then, and those that come while it is dead, fail with `NodeDied`. When the node comes
        back the service is made anew.
        """

    def spawn(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Starts `main(node, ...)` on a node of that name."""

    def observe(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Starts a main outside the cluster: it is not waited for, and costs no model time."""

    def run(self, until_s: float = float("inf")) -> float:
        """Runs until every spawned main has ended or the clock says `until_s`.

        Returns the time, in seconds, at which it stopped. Raises the first error that
        nobody awaited, or DeadlockError.
        """

    def stop(self) -> None:
        """Ends `run` at the next chance, as if `until_s` had come."""

    def nodes(self) -> list[str]:
        """Names of all nodes, those of observers left out."""

    def kill(self, name: str) -> None:
        """Kills a node, as if its machine had lost its power.

        Raises:
          ValueError: there is no such node, or on this runtime none can die.
        """

    def between_events(self, do: Callable[[], object]) -> None:
        """Does it when no program runs; where there is no such moment, now."""

    def cards_busy_s(self) -> dict[str, float]:
        """How long network cards were busy so far, in the mean, by kind of node and way.

        Empty where they are real: nobody measures them.
        """

    def revive(self) -> None:
        """After a run: brings back what is dead, so that it can be asked for what it knows."""

    def close(self) -> None:
        """Ends whatever goes on outside this process; nothing answers afterwards."""


def node_generator(seed: int, name: str, incarnation: int = 0) -> np.random.Generator:
    """Rule 9: one independent stream for each (seed, node name, incarnation)."""
    return np.random.default_rng([seed, incarnation, *name.encode()])
