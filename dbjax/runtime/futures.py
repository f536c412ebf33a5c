"""The futures of all runtimes.

There is no event loop: the thread that settles a future runs its callbacks. See
`dbjax.runtime.interface`.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar, final

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K")


@final
class Future(Generic[T]):
    """A result that may not have arrived yet.

    One thread may settle it while others watch it, without a lock: the thread that pops a callback
    runs it, and the outcome is set before the settling thread pops any.

    Args:
      label: what a deadlock report calls the future.

    Attributes:
      label: see above.
      awaited: whether anyone has looked at the outcome.
    """

    __slots__ = ("_callbacks", "_children", "_error", "_settled", "_value", "awaited", "label")

    def __init__(self, label: object = "") -> None:
        self.label = label
        self.awaited = False
        self._settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._children: Sequence[Future[Any]] = ()  # the futures whose error this one passes on

    def done(self) -> bool:
        """Returns whether the future is settled, so that `result` may be called."""
        return self._settled

    def result(self) -> T:
        """Returns the value, or raises the error, of a settled future.

        Raises:
          RuntimeError: the future is not done.
          Exception: the error with which it was settled.
        """
        if not self._settled:
            raise RuntimeError(f"result() of {self.label} before it is done: await it")
        self.awaited = True
        if self._error is not None:
            self.see()
            raise self._error
        return self._value  # type: ignore[return-value]

    def see(self) -> None:
        """Marks the outcome as looked at, so that an error does not count as lost."""
        self.awaited = True
        if self._error is not None:
            for child in self._children:
                child.see()

    def error(self) -> BaseException | None:
        """Returns the error with which it was settled, or None; this does not count as looking."""
        return self._error

    def set_result(self, value: T) -> None:
        """Settles the future with a value, and runs its callbacks."""
        if self._settled:
            raise RuntimeError(f"{self.label} was settled twice")
        self._value = value
        self._settled = True
        if self._callbacks:
            self._run_callbacks()

    def set_error(self, error: BaseException, children: Sequence[Future[Any]] = ()) -> None:
        """Settles the future with an error, and runs its callbacks.

        Args:
          error: the error.
          children: the futures from which the error comes. Whoever looks at this future's outcome
            has looked at theirs.
        """
        if self._settled:
            raise RuntimeError(f"{self.label} was settled twice")
        self._error = error
        self._children = children
        if self.awaited:  # another error of the same parent was seen before this one came
            self.see()
        self._settled = True
        self._run_callbacks()

    def watched(self) -> bool:
        """Returns whether anyone waits for the outcome, or has looked at it."""
        return self.awaited or bool(self._callbacks)

    def on_done(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once: when the future is settled, or now if it already is."""
        self._callbacks.append(callback)
        if self._settled:
            self._run_callbacks()

    def on_done_first(self, callback: Callable[[], object]) -> None:
        """Like `on_done`, but runs before all other callbacks. The future must not be settled."""
        self._callbacks.insert(0, callback)

    def set_callback(self, callback: Callable[[], object], wanted: bool) -> None:
        """Removes a registered callback, or leaves it registered once if it is `wanted`."""
        places = [i for i, known in enumerate(self._callbacks) if known == callback]
        for place in reversed(places[int(wanted) :]):
            del self._callbacks[place]

    def then(self, function: Callable[[T], R]) -> Future[R]:
        """Returns a future of `function(result)`; it fails with an error of either."""
        made: Future[R] = Future(self.label)

        def settle() -> None:
            error = self.error()
            if error is not None:
                made.set_error(error, [self])
                return
            try:
                value = function(self.result())
            except Exception as failure:
                made.set_error(failure)
            else:
                made.set_result(value)

        self.on_done(settle)
        return made

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
    """Returns a future that is already settled with a value."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def all_of(
    futures: Sequence[Future[T]],
    combine: Callable[[list[T]], R],
    failed: Callable[[int], object] = lambda index: None,
) -> Future[R]:
    """Returns a future that waits for several others.

    Args:
      futures: the futures to wait for; may be empty.
      combine: a function of their results, in order, that gives the result.
      failed: is called with the index of the first future that fails.

    Returns:
      A future that is done when all are done, or fails with the first error of any of them.
    """
    together: Future[R] = Future(futures[0].label if futures else "")
    if not futures:
        together.set_result(combine([]))
    waiting = _Waiting(futures, combine, failed, together)
    for future in futures:
        future.on_done(functools.partial(waiting.arrive, future))
    return together


@final
class _Waiting(Generic[T, R]):
    """The state of `all_of`. Several threads may settle the futures: its counters are atomic."""

    __slots__ = ("_arrived", "_combine", "_failed", "_first_error", "_futures", "_together")

    def __init__(
        self,
        futures: Sequence[Future[T]],
        combine: Callable[[list[T]], R],
        failed: Callable[[int], object],
        together: Future[R],
    ) -> None:
        self._futures, self._combine, self._failed = futures, combine, failed
        self._together = together
        self._arrived, self._first_error = itertools.count(1), itertools.count()

    def arrive(self, future: Future[T]) -> None:
        """Is called when one of the futures is done."""
        futures = self._futures
        if future._error is not None:
            if next(self._first_error) == 0:
                self._failed(futures.index(future))
                self._together.set_error(future._error, futures)
        elif next(self._arrived) == len(futures):
            self._together.set_result(self._combine([f.result() for f in futures]))


def first_of(
    futures: Sequence[Future[Any]], timeout: Future[None] | None = None
) -> Future[int | None]:
    """Returns a future of the index of the first of several futures to be done.

    Args:
      futures: the futures to wait for. If several are done already, the lowest index counts.
      timeout: a future that gives the result None if it is done first; None: waits for ever.

    Raises:
      ValueError: there are no futures.
    """
    if not futures:
        raise ValueError("first() of no futures would wait forever: give it at least one")
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


class Arrivals(Protocol[K]):
    """A collection of futures, from which their keys are taken one by one as they are done."""

    def add(self, key: K, future: Future[Any]) -> None:
        """Adds a future under a key."""

    def next(self) -> Future[K]:
        """Returns a future of the key of the next future to be done; each key comes once."""


@final
class ArrivalQueue(Generic[K]):
    """`Arrivals` in the order in which the futures are done.

    Taking one costs the same however many there are, while `first_of` looks at all of them.

    Args:
      label: what a deadlock report calls the futures that are awaited.
      taken: is called with the number of each future that is taken; `add` counts from 0.
    """

    def __init__(self, label: object, taken: Callable[[int], None] = lambda index: None) -> None:
        self._label, self._taken = label, taken
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._done: deque[tuple[int, K]] = deque()
        self._takers: deque[Future[K]] = deque()

    def add(self, key: K, future: Future[Any]) -> None:
        index = next(self._count)
        future.on_done(lambda: self._arrive(index, key))

    def next(self) -> Future[K]:
        with self._lock:
            if self._done:
                index, key = self._done.popleft()
                self._taken(index)
                return ready(key)
            taker: Future[K] = Future(self._label)
            self._takers.append(taker)
            return taker

    def _arrive(self, index: int, key: K) -> None:
        with self._lock:
            if not self._takers:
                self._done.append((index, key))
                return
            taker = self._takers.popleft()
            self._taken(index)
        taker.set_result(key)
