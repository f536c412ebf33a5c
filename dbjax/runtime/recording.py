"""Recording and replaying what a program sees of time.

The results of a program depend on its seeds and on timing. Timing enters in two places only: the
order in which services serve calls and are given answers, and what callers see of time: what
`Node.now`, `is_done`, `first` and `arrivals` return, which of several errors comes first, and which
calls fail since a node has died. An event log that holds both therefore determines a run.
`RecordedObservations` writes what callers see into the log, and `ReplayedObservations` shows it to
them again.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, final

from dbjax.errors import ReplayError
from dbjax.runtime.event_log import EventLog, Script, ServiceStream
from dbjax.runtime.futures import ArrivalQueue, Arrivals, Future, all_of, ready

R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K")


class Observations(Protocol):
    """What one incarnation of a caller sees of time."""

    @property
    def events(self) -> ServiceStream | None:
        """The log of the caller's events, if it is a service and there is a log."""

    def again(self, state: int | None = None) -> Observations:
        """Returns the observations of the caller's next incarnation.

        Args:
          state: the number of the call that returned the checkpointed state with which it begins;
            None: it begins without one.
        """

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

    def all_of(self, futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
        """Returns `futures.all_of(futures, combine)`, whose error is the first of several."""

    def answered(self, number: int, attempt: int, *, died: bool) -> None:
        """Is called when the caller is given the answer to a call.

        Args:
          number: the number of the call.
          attempt: its attempt.
          died: whether it is given no answer, because the node has died.
        """

    def note(self, kind: str, name: str, number: int) -> None:
        """Writes something into the log that a replay does not need."""


@final
class LiveObservations:
    """Observations that show time as it is."""

    events = None

    def again(self, state: int | None = None) -> LiveObservations:
        return self

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

    def all_of(self, futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
        return all_of(futures, combine)

    def answered(self, number: int, attempt: int, *, died: bool) -> None:
        """Does nothing, since there is no log."""

    def note(self, kind: str, name: str, number: int) -> None:
        """Does nothing, since there is no log."""


@final
class RecordedObservations:
    """Observations that show time as it is, and record it in the event log.

    Args:
      log: the event log.
      label: the label of the caller.
      incarnation: how often it has failed before.
      service: the name of the service that the caller is; None: it is a process.
      state: see `again`.
    """

    def __init__(
        self,
        log: EventLog,
        label: str,
        incarnation: int = 0,
        service: str | None = None,
        state: int | None = None,
    ) -> None:
        self._log, self._label, self._incarnation, self._service = log, label, incarnation, service
        self._seen = log.seen(label, incarnation)
        self.events = None if service is None else log.service(service, incarnation, state)

    def again(self, state: int | None = None) -> RecordedObservations:
        self._seen.flush()  # a batch of this incarnation will never become full
        if self.events is not None:
            self.events.flush()
        return RecordedObservations(
            self._log, self._label, self._incarnation + 1, self._service, state
        )

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

    def all_of(self, futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
        place = self._seen.place("failed")
        return all_of(futures, combine, lambda index: self._failed(place, index))

    def answered(self, number: int, attempt: int, *, died: bool) -> None:
        if self.events is not None:
            self.events.answered(number, attempt, died)
        elif died:
            self._seen.add("died", (number, attempt), rare=True)

    def note(self, kind: str, name: str, number: int) -> None:
        if self.events is not None:
            self.events.note(kind, name, number)
        else:
            self._seen.add(kind, (name, number))

    def _failed(self, place: int, index: int) -> None:
        self._seen.add("failed", (place, index), rare=True)


class EndOfLog(BaseException):
    """The log has no entry for what the node observes next, so the node's replay ends here."""


@final
class ReplayedObservations:
    """Observations that repeat those of one incarnation of a caller from its event log."""

    events = None

    def __init__(self, script: Script, label: str, incarnation: int = 0) -> None:
        self._streams: dict[str, Iterator[Any]] = {}
        self._script, self._label, self._incarnation = script, label, incarnation
        self._firsts, self._failed = dict(self._stream("first")), dict(self._stream("failed"))
        self._died = set(map(tuple, self._stream("died")))
        self._count = {"first": 0, "arrivals": 0, "failed": 0}

    def again(self, state: int | None = None) -> ReplayedObservations:
        return ReplayedObservations(self._script, self._label, self._incarnation + 1)

    def dies(self, number: int, attempt: int) -> bool:
        """Returns whether the caller, a process, learned that the node it called had died."""
        return (number, attempt) in self._died

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

    def all_of(self, futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
        index = self._failed.get(self._place("failed"))
        return all_of(futures, combine) if index is None else _failing(futures, index)

    def answered(self, number: int, attempt: int, *, died: bool) -> None:
        """Does nothing, since the replay makes sure of the order itself."""

    def note(self, kind: str, name: str, number: int) -> None:
        """Does nothing, since the log has the note."""

    def _place(self, kind: str) -> int:
        self._count[kind] += 1
        return self._count[kind] - 1

    def _next(self, kind: str) -> Any:
        stream = self._streams.setdefault(kind, self._stream(kind))
        for value in stream:
            return value
        raise EndOfLog

    def _stream(self, kind: str) -> Iterator[Any]:
        return iter(self._script.seen(self._label, self._incarnation, kind))


def _failing(futures: Sequence[Future[Any]], index: int) -> Future[Any]:
    """Returns a future that fails with the error of one of several futures."""
    made: Future[Any] = Future(futures[index].label)

    def fail() -> None:
        error = futures[index].error()
        if error is None:
            raise ReplayError(f"{futures[index].label} was answered, but failed in the log")
        made.set_error(error, futures)

    futures[index].on_done(fail)
    return made


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
