"""Results that may not have arrived: one kind of future for every runtime.

No event loop: whoever settles a future runs its callbacks. See `dbjax.runtime.interface`.
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
        self.see()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def see(self) -> None:
        """Somebody has looked at the outcome: no error of it is lost."""
        self.awaited = True
        if self._error is not None:
            for child in self._children:
                child.see()

    def error(self) -> BaseException | None:
        """The error it was settled with, without counting as having seen it."""
        return self._error

    def set_result(self, value: T) -> None:
        self._value = value
        self._settle()

    def set_error(self, error: BaseException, children: Sequence[Future[Any]] = ()) -> None:
        self._error = error
        self._children = children
        if self.awaited:  # of several that failed, another was seen first
            self.see()
        self._settle()

    def watched(self) -> bool:
        """Whether anyone waits for it, or has seen it."""
        return self.awaited or bool(self._callbacks)

    def on_done(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once: when settled, or now if it already is."""
        self._callbacks.append(callback)
        if self._settled:
            self._run_callbacks()

    def on_done_first(self, callback: Callable[[], object]) -> None:
        """As `on_done`, before all others; only before it is settled."""
        self._callbacks.insert(0, callback)

    def set_callback(self, callback: Callable[[], object], wanted: bool) -> None:
        """Whether it calls back or not, at most once."""
        places = [i for i, known in enumerate(self._callbacks) if known == callback]
        for place in reversed(places[int(wanted) :]):
            del self._callbacks[place]

    def then(self, function: Callable[[T], R]) -> Future[R]:
        """A future of the function of its result, or of the error of either."""
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


class Arrivals(Protocol[K]):
    """Futures under keys, taken one by one as they are done."""

    def add(self, key: K, future: Future[Any]) -> None: ...

    def next(self) -> Future[K]:
        """The key of the next to be done, each once."""


@final
class ArrivalQueue(Generic[K]):
    """`Arrivals` in the order in which they are done.

    Each costs the same however many there are; `first_of` looks at all of them each time.

    Args:
      label: what a deadlock report calls whoever is waited for.
      taken: is told the number, from 0 in order of `add`, of each that is taken.
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
