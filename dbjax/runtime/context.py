"""The caller context: which process or service this thread runs, and how many calls it has made.

Callers number their calls, so that a call has the same name on every runtime. Everything that a
caller sees of time passes through its `Observations`; every future and value that its coroutine is
given passes through its journal, if it keeps one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, final

from dbjax.runtime.futures import Future
from dbjax.runtime.recording import LiveObservations, Observations

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


@final
class Caller:
    """A process, or a service with code of its own.

    Attributes:
      node: the node that it runs on.
      label: its name, unique within the run.
      observations: what it sees of time.
      calls: the number of calls that it has made.
      incarnation: the number of times it has failed in this run, unlike `Node.incarnation`. Replies
        to an earlier incarnation are dropped.
      journal: the journal of its coroutine, while the coroutine runs; None: no journal is kept.
    """

    __slots__ = ("calls", "incarnation", "journal", "label", "node", "observations")

    def __init__(self, node: Any, label: str, observations: Observations) -> None:
        self.node, self.label, self.calls, self.incarnation = node, label, 0, 0
        self.observations = observations
        self.journal: Journal | None = None

    def number(self) -> int:
        """Returns the number of its next call: 1, 2, 3, ..."""
        self.calls += 1
        return self.calls

    def said(self, value: Any) -> Any:
        """Passes a value through the journal, if there is one, and returns it."""
        return value if self.journal is None else self.journal.said(value)


class _Driver:
    """Stands for the node of the code that calls `run`, which is outside the cluster."""

    name, observer, elsewhere = "driver", True, False


DRIVER = Caller(_Driver(), "driver", LiveObservations())


class _Current(threading.local):
    caller = DRIVER


current = _Current()  # the caller whose code this thread runs


@contextlib.contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Makes `caller` the caller of all calls in the block."""
    before, current.caller = current.caller, caller
    try:
        yield
    finally:
        current.caller = before


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


def of_service(name: str) -> str:
    """Returns the label of a service's own calls, since a process may run on the same node."""
    return f"{name}.service"
