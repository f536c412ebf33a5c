"""Who is calling: the code that runs in this thread, and how many calls it has made.

Calls are numbered by their caller, so that every call has a name that is the same on every
runtime. What a caller sees of time goes through its `Observations`; what its coroutine is given
goes through its journal, if it keeps one.
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
    def kept(self) -> Any: ...

    def keep(self, state: Any) -> None: ...

    def given(self, ask: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        """The future that `ask(*args, **kwargs)` returns."""

    def said(self, value: Any) -> Any:
        """The value."""


@final
class Caller:
    """A process, or a service with code of its own.

    Attributes:
      node: the node that it runs on.
      label: its name within the run.
      observations: what it sees of time.
      calls: how many calls it has made.
      incarnation: how many times it has failed. Replies to an earlier incarnation are dropped.
      journal: the journal of its coroutine, while that runs; None where none is kept.
    """

    __slots__ = ("calls", "incarnation", "journal", "label", "node", "observations")

    def __init__(self, node: Any, label: str, observations: Observations) -> None:
        self.node, self.label, self.calls, self.incarnation = node, label, 0, 0
        self.observations = observations
        self.journal: Journal | None = None

    def number(self) -> int:
        """The number of its next call: 1, 2, 3, ..."""
        self.calls += 1
        return self.calls

    def said(self, value: Any) -> Any:
        """The value; if there is a journal, the value goes through it."""
        return value if self.journal is None else self.journal.said(value)


class _Driver:
    """Stands for the code that calls `run`: it is on no node of the cluster."""

    name, observer, elsewhere = "driver", True, False


DRIVER = Caller(_Driver(), "driver", LiveObservations())


class _Current(threading.local):
    caller = DRIVER


current = _Current()  # the code that this thread runs


@contextlib.contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Calls that are made in the block are calls of `caller`."""
    before, current.caller = current.caller, caller
    try:
        yield
    finally:
        current.caller = before


def journaled(
    method: Callable[Concatenate[S, P], Future[T]],
) -> Callable[Concatenate[S, P], Future[T]]:
    """Decorates what a coroutine may ask for, and gets a future of.

    This is the only place where such questions are recorded: if the coroutine keeps a journal, the
    journal asks, and can give the same future again when the coroutine is resumed.
    """

    @functools.wraps(method)
    def asked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        journal = current.caller.journal
        if journal is None:
            return method(self, *args, **kwargs)
        return journal.given(method, self, *args, **kwargs)

    return asked


def of_service(name: str) -> str:
    """The label of a service's own calls; a process may run on the same node."""
    return f"{name}.service"
