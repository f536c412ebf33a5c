"""Recording and replaying what a program sees of time.

The results of a program depend on its seeds and on timing. Timing enters in two places only: the
order in which services serve calls, and what `Node.now`, `is_done`, `first` and `arrivals` return.
An event log that holds both therefore determines a run. `RecordedObservations` writes what these
methods return into the log, and `ReplayedObservations` makes them return it again.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, final

from dbjax.errors import ReplayError
from dbjax.runtime.event_log import Script, Seen, version_of
from dbjax.runtime.futures import ArrivalQueue, Arrivals, Future, ready

T = TypeVar("T")
K = TypeVar("K")


class Observations(Protocol):
    """What the code on a node sees of time; the methods answer those of `Node`."""

    def now(self, time_s: float) -> float:
        """Returns the time to show to the node, when the clock says `time_s` seconds."""

    def is_done(self, future: Future[Any]) -> Future[bool]:
        """Returns whether the future is to appear done to the node."""

    def first(
        self, futures: Sequence[Future[Any]], first: Future[int | None]
    ) -> Future[int | None]:
        """Returns which of `futures` is to appear first; `first` is what the runtime finds."""

    def arrivals(self, label: object) -> Arrivals[Any]:
        """Makes the `Arrivals` for `Node.arrivals`."""


@final
class LiveObservations:
    """Observations that show time as it is."""

    def now(self, time_s: float) -> float:
        return time_s

    def is_done(self, future: Future[Any]) -> Future[bool]:
        return ready(future.done())

    def first(
        self, futures: Sequence[Future[Any]], first: Future[int | None]
    ) -> Future[int | None]:
        return first

    def arrivals(self, label: object) -> Arrivals[Any]:
        return ArrivalQueue(label)


@final
class RecordedObservations:
    """Observations that show time as it is, and record it in the event log."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def now(self, time_s: float) -> float:
        self._seen.add("now", time_s)
        return time_s

    def is_done(self, future: Future[Any]) -> Future[bool]:
        done = future.done()
        self._seen.add("landed", int(done))
        return ready(done)

    def first(
        self, futures: Sequence[Future[Any]], first: Future[int | None]
    ) -> Future[int | None]:
        place = self._seen.place("first")
        first.on_done(lambda: self._seen.add("first", (place, first.result())))
        return first

    def arrivals(self, label: object) -> Arrivals[Any]:
        which = self._seen.place("arrivals")
        return ArrivalQueue(label, taken=lambda index: self._seen.add(f"arrivals {which}", index))


class EndOfLog(BaseException):
    """The log has no entry for what the node observes next, so the node's replay ends here."""


@final
class ReplayedObservations:
    """Observations that repeat those of another run from its event log."""

    def __init__(self, script: Script, label: str) -> None:
        self._streams: dict[str, Iterator[Any]] = {}
        self._script, self._label = script, label
        self._firsts = dict(self._stream("first"))
        self._count = {"first": 0, "arrivals": 0}

    def now(self, time_s: float) -> float:
        return float(self._next("now"))

    def is_done(self, future: Future[Any]) -> Future[bool]:
        return _when_done(future, True) if self._next("landed") else ready(False)

    def first(
        self, futures: Sequence[Future[Any]], first: Future[int | None]
    ) -> Future[int | None]:
        place = self._place("first")
        if place not in self._firsts:
            return Future("the end of the log")
        index = self._firsts[place]
        return ready(None) if index is None else _when_done(futures[index], index)

    def arrivals(self, label: object) -> Arrivals[Any]:
        return _InOrder(self._stream(f"arrivals {self._place('arrivals')}"))

    def _place(self, kind: str) -> int:
        self._count[kind] += 1
        return self._count[kind] - 1

    def _next(self, kind: str) -> Any:
        stream = self._streams.setdefault(kind, self._stream(kind))
        for value in stream:
            return value
        raise EndOfLog

    def _stream(self, kind: str) -> Iterator[Any]:
        return iter(self._script.seen(self._label, kind))


def _when_done(future: Future[Any], value: T) -> Future[T]:
    """Returns a future of `value` that is done when the given future has a result or an error."""
    made: Future[T] = Future(future.label)
    future.on_done(lambda: made.set_result(value))
    return made


@final
class _InOrder(Generic[K]):
    """`Arrivals` in a given order of their numbers."""

    def __init__(self, order: Iterator[int]) -> None:
        self._order, self._count = order, itertools.count()
        self._keys: dict[int, Future[K]] = collections.defaultdict(Future)

    def add(self, key: K, future: Future[Any]) -> None:
        place = self._keys[next(self._count)]
        future.on_done(lambda: place.set_result(key))

    def next(self) -> Future[K]:
        for index in self._order:
            return self._keys[index]
        return Future("the end of the log")


@final
class ReplayOrder:
    """Makes a service serve its calls in the order of an event log; an early call waits.

    Attributes:
      served: the number of calls that have been served.
    """

    def __init__(self, script: Script, service: str) -> None:
        self._calls, self._service = script.calls(service), service
        self._early: dict[tuple[str, int], Any] = {}
        self._next = 0
        self.served = 0

    def due(self, caller: str, number: int, call: Any) -> list[Any]:
        """Accepts a call that has arrived, and returns the calls whose turn has come, in order.

        Args:
          caller: the label of the caller.
          number: the caller's number of the call.
          call: the call, which is returned now or by a later `due`.
        """
        self._early[caller, number] = call
        found = []
        while self._next < len(self._calls) and self._calls[self._next][:2] in self._early:
            found.append(self._early.pop(self._calls[self._next][:2]))
            self._next += 1
        return found

    def check(self, reply: Any) -> None:
        """Compares the reply to the call that was just served with the log.

        Raises:
          ReplayError: the versions differ.
        """
        caller, number, version = self._calls[self.served]
        self.served += 1
        if version != version_of(reply):
            raise ReplayError(
                f"{self._service}, call {self.served} of {len(self._calls)} ({caller}'s number "
                f"{number}): version {version_of(reply)}, the log says {version}: this is not the "
                "program, the data or the machine that wrote the log, or the log is damaged"
            )
