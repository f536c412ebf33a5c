"""The caller context: which process or service this thread runs, and how many calls it has made.

Callers number their calls, so that a call has the same name on every runtime. Everything that a
caller sees of time passes through its `Observations`; every future and value that its coroutine is
given passes through its journal, if it keeps one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, final

from dbjax.runtime.event_log import DRIVER_LABEL, WAIT
from dbjax.runtime.futures import Future
from dbjax.runtime.recording import LiveObservations, Observations

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


class Journal(Protocol):
    """Records what a coroutine is given while it runs."""

    @property
    def kept(self) -> Any:
        """The progress that the coroutine saved last; None if it has saved nothing yet."""

    def keep(self, state: Any) -> None:
        """Saves the coroutine's progress, and discards everything recorded before it."""

    def given(self, ask: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns the future of `ask(*args, **kwargs)`, which it records or repeats."""

    def said(self, value: Any) -> Any:
        """Returns the value, which it records; or the recorded one, if it repeats."""


class Turn(Protocol):
    """The order in which a service that several threads serve does what it does."""

    def answer(self, settle: Callable[[], None]) -> None:
        """Calls `settle` once no call is being served, unless by a coroutine that waits."""

    def wait(self, future: Future[Any], stopping: Callable[[], bool]) -> None:
        """Waits in a coroutine of the service until a future is done, or `stopping()`."""


@final
class Caller:
    """A process, or a service with code of its own.

    Attributes:
      node: the node that it runs on.
      label: its name, unique within the run.
      observations: what it sees of time.
      is_service: whether it is a service. A service is given the answers to its calls one after
        the other, between the calls that it serves.
      calls: the number of calls that this incarnation of it has made.
      waits: the number of times that this incarnation of it has waited for a node to be up.
      incarnation: the number of times it has failed in this run, unlike `Node.incarnation`. Replies
        to an earlier incarnation are dropped.
      turn: for a service, gives it the answers in its turn; None: there is only one thread.
      journal: the journal of its coroutine, while the coroutine runs; None: no journal is kept.
    """

    __slots__ = (
        "calls",
        "incarnation",
        "is_service",
        "journal",
        "label",
        "node",
        "observations",
        "turn",
        "waits",
    )

    def __init__(
        self,
        node: Any,
        label: str,
        observations: Observations,
        *,
        is_service: bool = False,
        incarnation: int = 0,
    ) -> None:
        self.node, self.label, self.calls, self.incarnation = node, label, 0, incarnation
        self.observations, self.is_service = observations, is_service
        self.waits = 0
        self.turn: Turn | None = None
        self.journal: Journal | None = None

    def number(self) -> int:
        """Returns the number of its next call: 1, 2, 3, ..."""
        self.calls += 1
        return self.calls

    def fail(self) -> None:
        """Ends this incarnation, since the node has failed."""
        self.incarnation, self.calls, self.waits = self.incarnation + 1, 0, 0

    def answered(
        self, number: int, attempt: int, settle: Callable[[], None], *, died: bool = False
    ) -> None:
        """Records that the caller is given the answer to a call, and gives it the answer.

        Args:
          number: the number of the call.
          attempt: its attempt.
          settle: settles the future of the call.
          died: whether the future fails with `NodeDied`, because the node that was called has died.
        """

        def give() -> None:
            self.observations.answered(number, attempt, died=died)
            settle()

        if self.turn is None:
            give()
        else:
            self.turn.answer(give)

    def said(self, value: Any) -> Any:
        """Passes a value through the journal, if there is one, and returns it."""
        return value if self.journal is None else self.journal.said(value)


class _Driver:
    """Stands for the node of the code that calls `run`, which is outside the cluster."""

    name, observer, elsewhere = DRIVER_LABEL, True, False


DRIVER = Caller(_Driver(), DRIVER_LABEL, LiveObservations())


class _Current(threading.local):
    caller = DRIVER
    repeated: tuple[int, int] | None = None  # the number and the attempt of the next call


current = _Current()  # the caller whose code this thread runs


@contextlib.contextmanager
def calling_as(caller: Caller, repeated: tuple[int, int] | None = None) -> Iterator[None]:
    """Makes `caller` the caller of all calls in the block.

    Args:
      caller: the caller.
      repeated: the number and the attempt of the one call in the block; None: calls get numbers of
        their own.
    """
    before, current.caller, current.repeated = current.caller, caller, repeated
    try:
        yield
    finally:
        current.caller, current.repeated = before, None


def number_call(caller: Caller) -> tuple[int, int]:
    """Returns the number and the attempt of the call that the current caller makes now.

    A call that is repeated, because the node that was called has died, keeps its number. When it is
    repeated depends on time, and numbers must not.
    """
    repeated = current.repeated
    if repeated is not None:
        current.repeated = None
        return repeated
    caller.calls += 1
    return caller.calls, 0


def number_wait(caller: Caller) -> tuple[int, int]:
    """Returns the number and the attempt that stand for waiting until a node is up.

    These numbers are separate. A caller waits when a node has died, which depends on time.
    """
    caller.waits += 1
    return caller.waits, WAIT


def all_of(futures: Sequence[Future[T]], combine: Callable[[list[T]], R]) -> Future[R]:
    """Returns a future that waits for several others.

    Args:
      futures: the futures to wait for; may be empty.
      combine: a function of their results, in order, that gives the result.

    Returns:
      A future that is done when all are done, or fails with the first error of any of them.
    """
    return current.caller.observations.all_of(futures, combine)


def note(kind: str, name: str, number: int) -> None:
    """Writes a name and a number into the event log, if there is one; a replay ignores them."""
    current.caller.observations.note(kind, name, number)


def note_each(kind: str, names: Iterable[str], number: int) -> None:
    """Notes several names with the same number, see `note`."""
    observations = current.caller.observations
    for name in names:
        observations.note(kind, name, number)


def journaled(
    method: Callable[Concatenate[S, P], Future[T]],
) -> Callable[Concatenate[S, P], Future[T]]:
    """Decorates a method that coroutines call and that returns a future.

    Such calls are recorded only here: if the coroutine keeps a journal, the journal calls the
    method, and returns the same future again when the coroutine is resumed.
    """

    @functools.wraps(method)
    def asked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        journal = current.caller.journal
        if journal is None:
            return method(self, *args, **kwargs)
        return journal.given(method, self, *args, **kwargs)

    return asked


CHECKPOINT = "checkpoint"


def changes_what_follows(caller: Caller, method: str, args: tuple[Any, ...]) -> bool:
    """Returns whether the log must have a call of an observer.

    A service may begin with the state that `checkpoint` returned to an observer. The driver's last
    call tells which copy of a service it was that had the result of the run.

    Args:
      caller: the observer.
      method: the name of the method.
      args: the arguments; the first one may be the name of the method that a copy is asked to call.
    """
    names = [name for name in (method, *args[:1]) if isinstance(name, str)]
    return caller.label == DRIVER_LABEL or CHECKPOINT in names


def of_service(name: str) -> str:
    """Returns the label of a service's own calls, since a process may run on the same node."""
    return f"{name}.service"
