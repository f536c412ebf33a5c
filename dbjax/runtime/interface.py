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
4. Neither side mutates or donates the arguments and the result of a call afterwards.
5. `Node.compute` runs real numerics; the runtime supplies the duration.
6. Calls form a directed acyclic graph: coordinator -> replicas -> shards.
7. No failure is lost: `run` raises the first error that nobody awaited, and a run whose remaining
   processes all wait for what cannot happen raises a DeadlockError that names each of them. (The
   failure of a node is not a failure of the program: only its callers learn of it.)
8. Parameters are always sent with their versions.
9. Randomness is folded from (seed, node name, incarnation): the streams are the same on every
   runtime.
10. Algorithms know nothing of bytes or seconds: sizes come from arrays, times from the `Cluster`.
11. Timing enters in two places: the order in which services serve calls and are given the answers
    to their own, and what callers see of time: what `now`, `is_done`, `first` and `arrivals`
    return, which error of several comes first, and which calls fail with `NodeDied`. A run that
    records both (`event_log`) can be replayed.

A service method may be a plain function, which is served at once; or a coroutine function, during
which the service is busy; or it may return a `Future`, a deferred reply: the service continues to
serve other calls, and the reply is sent when the future is settled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import (
    Any,
    Concatenate,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
    runtime_checkable,
)

import numpy as np

from dbjax.runtime.context import Caller as Caller
from dbjax.runtime.context import all_of as all_of
from dbjax.runtime.context import calling_as as calling_as
from dbjax.runtime.context import current as current
from dbjax.runtime.context import journaled as journaled
from dbjax.runtime.context import note as note
from dbjax.runtime.context import note_each as note_each
from dbjax.runtime.futures import ArrivalQueue as ArrivalQueue
from dbjax.runtime.futures import Arrivals as Arrivals
from dbjax.runtime.futures import Future as Future
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

    def compile_ahead(self) -> None:
        """Compiles everything that using the argument would compile."""


class SavedState(NamedTuple):
    """The checkpointed state of a service.

    Attributes:
      state: the state.
      call: the number of the observer's call that returned it; None: it is from an earlier run.
    """

    state: Any
    call: int | None = None


class Handle(Protocol[S_co]):
    """A reference to a service of class S on some node.

    `call(method, *args, **kwargs)` calls a method of the service, given as the class's function,
    such as `Shard.fetch`. It returns at once, with a future of the reply. The future fails with
    `ServiceError` if the method raises an error, and with `NodeDied` if the node fails first.
    """

    @property
    def name(self) -> str:
        """The name of the service, which is the name of its node."""

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
        """Returns a future that is done when the service is up.

        That is at once, or when the service's node has come back.
        """


class Node(Protocol):
    """The view that a process or a service has of the machine on which it runs."""

    @property
    def name(self) -> str:
        """The name of the node, such as "replica/3"."""

    @property
    def incarnation(self) -> int:
        """How often this node has come back after a failure, plus how often the run was resumed.

        Exact resumptions do not count.
        """

    @property
    def returned(self) -> bool:
        """Whether the node has come back after a failure in this run."""

    def now(self) -> float:
        """Seconds since the run began, on this runtime's clock."""

    def compute(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a pure function on this machine; the future of its result is done when it ends.

        Where time is modelled, the future is done when the modelled machine would be.
        """

    def sleep(self, seconds: float) -> Future[None]:
        """Returns a future that is done after so many seconds of this runtime's clock.

        Raises:
          ValueError: the number is negative or not finite.
        """

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        """Waits for the first of several futures.

        Returns:
          A future of the index of the first to be done, or of None if `timeout_s` seconds pass
          before.
        """

    def is_done(self, future: Future[Any]) -> Future[bool]:
        """Returns whether the future is done, as a future to await; the answer comes at once.

        `Future.done` tells the same, but nothing records what it returned: a program that calls it
        cannot be replayed.
        """

    def arrivals(self, label: object) -> Arrivals[Any]:
        """Makes an empty `Arrivals`, for taking futures one by one as they are done.

        Args:
          label: what a deadlock report calls the futures that are awaited.
        """

    def random(self) -> np.random.Generator:
        """Makes a generator, which is the same for equal (seed, node name, incarnation)."""

    def record(self, **values: Any) -> None:
        """Adds a row of metrics to the run's trace, with the node's name and the time."""

    def service(self, name: str) -> Handle[Any]:
        """Returns the handle of the service of that name, wherever it runs."""

    def save_progress(self, state: Any) -> None:
        """Saves the state of a process at the beginning of an iteration of its loop.

        When a run is resumed exactly (`dbjax.checkpoint`), its processes are started again: they
        begin with the state that they saved last, and are given again everything that they were
        given since. A process that saves nothing is given everything again from its beginning.

        Args:
          state: containers, dataclasses, arrays and futures; nobody may change it afterwards.
            Futures in it forget who waits for them.
        """

    def saved_progress(self) -> Any:
        """Returns what the process saved before it was started again, or None.

        A process must call this before anything else.
        """

    def count_memory_traffic(self, arrays: Any) -> None:
        """Counts arrays that the call being served reads or writes besides its arguments."""


class Runtime(Protocol):
    """A place where services and processes run, each on a node.

    Attributes:
      clock: "virtual" if time is modelled, "wall" if it is real.
      latest_states: the latest checkpointed state of each service, by the name of that state.
      recorder: records arithmetic, which is then not done (`parameter_server.abstract`); None: it
        is done.
    """

    clock: Literal["virtual", "wall"]
    latest_states: dict[str, SavedState]
    recorder: Any

    @property
    def nodes_can_fail(self) -> bool:
        """Whether nodes may fail, so that calls may go unanswered."""

    @property
    def defers_arithmetic(self) -> bool:
        """Whether arithmetic may be deferred until somebody looks at its result.

        It may where durations are modelled. Then many small computations can be done as one.
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

        If the node fails, the state of the service is lost. The calls that it has not answered by
        then, and those that arrive while it is down, fail with `NodeDied`. When the node comes
        back, the service is made again.
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

        Whenever the service is made, the state is the entry of `latest_states` under `state_name`,
        or None if there is none.
        """

    def spawn(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Starts a process, the coroutine `main(node, ...)`, on a node of that name.

        If the node fails and comes back, the process starts again.

        Returns:
          A future of what the process returns.
        """

    def spawn_group(
        self,
        names: Sequence[str],
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[Future[T]]:
        """Starts processes that compute jointly: JAX sees the devices of all of them in each.

        Each is the coroutine `main(node, ...)` in an operating-system process of its own, where
        `jax.process_index()` is the index of its node's name. If one of the nodes fails, all fail,
        and all come back together.

        Returns:
          A future of what each process returns.

        Raises:
          ValueError: all nodes of this runtime are in one operating-system process.
        """

    def observe(
        self,
        name: str,
        main: Callable[Concatenate[Node, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Starts an observer: a process outside the cluster.

        The run does not wait for it to end, and its calls take no model time.
        """

    def run(self, until_s: float = float("inf")) -> float:
        """Runs until every spawned process has ended, or the clock says `until_s`.

        Returns:
          The time at which it stopped, in seconds on the run's clock.

        Raises:
          DeadlockError: all remaining processes wait for what cannot happen.
          Exception: the first error that nobody awaited.
        """

    def stop(self) -> None:
        """Ends `run` as soon as possible, as if `until_s` had come."""

    def nodes(self) -> list[str]:
        """The names of all nodes except observers."""

    def kill(self, name: str, *, hang: bool = False) -> bool:
        """Makes a node fail, as if its machine had lost power.

        Args:
          name: the name of the node.
          hang: whether it stands still instead, without an end, until the runtime notices.

        Returns:
          Whether the node was up; otherwise nothing happens.

        Raises:
          ValueError: there is no node of that name, or nodes of this runtime cannot fail or hang.
        """

    def between_events(self, do: Callable[[], object]) -> None:
        """Calls `do` when no process or service runs; at once if the runtime has no such moment."""

    def cards_busy_s(self) -> dict[str, float]:
        """Returns how long network cards were busy so far, in seconds.

        Values are means over the cards of a kind of node, in one direction. The dict is empty where
        network cards are real, since they are not measured.
        """

    def revive(self) -> None:
        """Brings back the services that are down after a run, so that they can be called."""

    def close(self) -> None:
        """Ends everything that runs outside this process; services do not answer afterwards."""


def node_generator(seed: int, name: str, incarnation: int = 0) -> np.random.Generator:
    """Makes the generator of a node: an independent stream for each (seed, name, incarnation).

    This is rule 9.
    """
    entropy = np.array([seed, incarnation, *name.encode()], np.uint32)
    return np.random.default_rng(entropy)  # four times faster than of a list, and the same


def describe_deadlock(time_s: float, waits: Mapping[str, Future[Any] | None]) -> str:
    """Returns one line that says which process waits for what.

    Args:
      time_s: the time on the run's clock, in seconds.
      waits: the future for which each process waits, by the name of its node; None: the node is
        down.
    """

    def label(future: Future[Any] | None) -> str:
        if future is None:
            return "its node to come back"
        return " of ".join(future.label) if isinstance(future.label, tuple) else str(future.label)

    names = "; ".join(f"{name} waits for {label(future)}" for name, future in waits.items())
    return f"at {time_s:g} s nothing can happen any more, but {names}"


_SCALARS = (int, float, str, bool, type(None))


def size_bytes(message: Any, scalar_bytes: int = 0) -> int:
    """Computes the size of a message, which is the sum of the sizes of its arrays.

    Args:
      message: arrays, numbers and names, in containers and dataclasses; the size of anything that
        has `nbytes` is that.
      scalar_bytes: the size of a number. With 0, names have no size either: the model's
        `latency_s` and `service_s` account for them. Otherwise, each letter of a name is one byte.
    """
    if isinstance(message, _SCALARS):
        if not scalar_bytes or message is None:
            return 0
        return len(message) if isinstance(message, str) else scalar_bytes
    size = getattr(message, "nbytes", None)
    if size is not None:
        return int(size)
    if isinstance(message, dict):
        message = tuple(message.items() if scalar_bytes else message.values())
    if isinstance(message, (tuple, list)):
        if scalar_bytes:
            return sum(size_bytes(part, scalar_bytes) for part in message)
        return sum(map(size_bytes, message))
    if dataclasses.is_dataclass(message):
        fields = dataclasses.fields(message)
        return sum(size_bytes(getattr(message, field.name), scalar_bytes) for field in fields)
    return scalar_bytes
