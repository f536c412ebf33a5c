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
   remaining mains all wait for what cannot come raises a DeadlockError naming each.
8. Versions travel with parameters.
9. Randomness is folded from (seed, node name): the same streams on every runtime.
10. Algorithms know nothing of bytes or seconds: sizes come from arrays, times from the
    `Cluster`.

A service method may be a plain function (served at once), a coroutine function (the
service is busy until it ends), or return a `Future` (a deferred reply: the service goes
on serving, the reply leaves when the future is settled).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, final, overload

import numpy as np

T = TypeVar("T")
R = TypeVar("R")
S_co = TypeVar("S_co", covariant=True)
P = ParamSpec("P")


@final
class Future(Generic[T]):
    """A result that may not have arrived.

    Safe to settle in one thread and watch from others, without a lock: whoever pops a
    callback runs it, and the outcome is set before the settling thread pops.
    """

    __slots__ = ("_callbacks", "_children", "_error", "_settled", "_value", "awaited", "label")

    def __init__(self, label: object = "") -> None:
        self.label = label  # what a deadlock report calls it
        self.awaited = False  # whether anyone has looked at the outcome
        self._settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._children: Sequence[Future[Any]] = ()  # whose error this one passes on

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._settled

    def result(self) -> T:
        """Returns the value or raises the error; only after `done`."""
        if not self._settled:
            raise RuntimeError(f"result() of {self.label} before it is done: await it")
        self.awaited = True
        if self._error is not None:
            for child in self._children:
                child.awaited = True
            raise self._error
        return self._value  # type: ignore[return-value]

    def error(self) -> BaseException | None:
        """The error it was settled with, without counting as having seen it."""
        return self._error

    def set_result(self, value: T) -> None:
        self._value = value
        self._settle()

    def set_error(self, error: BaseException, children: Sequence[Future[Any]] = ()) -> None:
        self._error = error
        self._children = children
        self._settle()

    def watched(self) -> bool:
        """Whether anyone waits for it, or has seen it."""
        return self.awaited or bool(self._callbacks)

    def on_done(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once: when settled, or now if it already is."""
        self._callbacks.append(callback)
        if self._settled:
            self._run_callbacks()

    def _settle(self) -> None:
        if self._settled:
            raise RuntimeError(f"{self.label} was settled twice")
        self._settled = True
        self._run_callbacks()

    def _run_callbacks(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:  # another thread popped the last one
                return
            callback()

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self._settled:
            yield self
        return self.result()


def ready(value: T) -> Future[T]:
    """A future that is already settled."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def all_of(futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
    """Waits for every future, then combines their results in order; fails with the first error."""
    together: Future[R] = Future(futures[0].label if futures else "")
    first_error = itertools.count()
    arrived = itertools.count(1)

    def arrive(future: Future[T]) -> None:
        error = future.error()
        if error is not None:
            if next(first_error) == 0:
                together.set_error(error, futures)
        elif next(arrived) == len(futures):
            together.set_result(combine([f.result() for f in futures]))

    if not futures:
        together.set_result(combine([]))
    for future in futures:
        future.on_done(functools.partial(arrive, future))
    return together


def first_of(
    futures: Sequence[Future[Any]], timeout: Future[None] | None = None
) -> Future[int | None]:
    """The index of the first to be done, None for the timeout; of several done, the lowest."""
    if not futures:
        raise ValueError("first() of no futures would wait for ever: give it at least one")
    first: Future[int | None] = Future(futures[0].label)
    arrivals = itertools.count()

    def arrive(index: int | None) -> None:
        if next(arrivals) == 0:
            first.set_result(index)

    for index, future in enumerate(futures):
        future.on_done(functools.partial(arrive, index))
    if timeout is not None:
        timeout.on_done(lambda: arrive(None))
    return first


def describe_deadlock(time_s: float, waits: Mapping[str, Future[Any] | None]) -> str:
    """One line: which main waits for what."""

    def label(future: Future[Any] | None) -> str:
        if future is None:
            return "its node to come back"
        return " of ".join(future.label) if isinstance(future.label, tuple) else str(future.label)

    names = "; ".join(f"{name} waits for {label(future)}" for name, future in waits.items())
    return f"at {time_s:g} s nothing can happen any more, but {names}"


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


class Node(Protocol):
    """What a main or a service sees of the machine it lives on."""

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """How often this node has come back from the dead."""

    def now(self) -> float:
        """Seconds since the run began, on this runtime's clock."""

    def compute(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a pure function; the future is done when the machine would be."""

    def sleep(self, seconds: float) -> Future[None]: ...

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        """The index of the first to be done, or None when `timeout_s` passes before."""

    def random(self) -> np.random.Generator:
        """A fresh generator, the same for the same (seed, node name, incarnation)."""

    def record(self, **values: Any) -> None:
        """Adds a row of metrics, stamped with node and time, to the run's trace."""


class Runtime(Protocol):
    """Where nodes live."""

    clock: Literal["virtual", "wall"]

    def serve(
        self,
        name: str,
        make: Callable[Concatenate[Node, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Handle[T]:
        """Places a service, `make(node, ...)`, on a node of that name."""

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


def node_generator(seed: int, name: str, incarnation: int = 0) -> np.random.Generator:
    """Rule 9: one independent stream for each (seed, node name, incarnation)."""
    return np.random.default_rng([seed, incarnation, *name.encode()])
