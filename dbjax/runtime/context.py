"""Who calls: calls are numbered, so that each has a name that is the same on every runtime."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

from dbjax.runtime.futures import Future
from dbjax.runtime.recording import LiveObservations, Observations


class Journal(Protocol):
    """Writes down what a coroutine is given, while it runs."""

    @property
    def kept(self) -> Any: ...

    def keep(self, state: Any) -> None: ...

    def given(self, ask: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        """What `ask` returns."""

    def said(self, value: Any) -> Any:
        """The value."""


@final
class Caller:
    """A main, or a service with code of its own.

    Attributes:
      node: that it runs on.
      label: names it within the run.
      observed: what it sees of time.
      calls: how many it has made.
      life: how often it has died; what it had asked for before then comes to nobody.
      journal: of its coroutine, while that runs; None where none is kept.
    """

    __slots__ = ("calls", "incarnation", "journal", "label", "node", "observations")

    def __init__(self, node: Any, label: str, observations: Observations) -> None:
        self.node, self.label, self.calls, self.incarnation = node, label, 0, 0
        self.observations = observations
        self.journal: Journal | None = None

    def number(self) -> int:
        """Of its next call: 1, 2, 3, ..."""
        self.calls += 1
        return self.calls


class _Driver:
    """Where `run` is called: no node of the cluster."""

    name, observer, elsewhere = "driver", True, False


DRIVER = Caller(_Driver(), "driver", LiveObservations())


class _Current(threading.local):
    caller = DRIVER


current = _Current()  # whose code this thread runs


@contextlib.contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """What is called in the block, `caller` calls."""
    before, current.caller = current.caller, caller
    try:
        yield
    finally:
        current.caller = before


def of_service(name: str) -> str:
    """The label of a service's own calls; a main may live on the same node."""
    return f"{name}.service"
