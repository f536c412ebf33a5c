"""Processes on virtual nodes: coroutines that are driven from one wait to the next."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, final

from dbjax.errors import NodeDied
from dbjax.runtime.context import Caller, current
from dbjax.runtime.interface import Future
from dbjax.runtime.recording import EndOfLog
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.node import VirtualNode
from dbjax.runtime.virtual.simulator import Simulator


class Steppable(Protocol):
    """The methods of a coroutine that driving it needs."""

    def send(self, value: None, /) -> Any: ...
    def close(self) -> None: ...


@final
class CoroutineDriver:
    """Runs a coroutine from one wait to the next, and settles a future when it ends.

    Args:
      simulator: the simulator of the run.
      caller: the process or the service that runs the coroutine.
      coroutine: the coroutine; it starts at once.
      future: the future of what the coroutine returns.

    Attributes:
      waiting: the future for which the coroutine waits.
    """

    __slots__ = ("_caller", "_coroutine", "_future", "_simulator", "waiting")

    def __init__(
        self, simulator: Simulator, caller: Caller, coroutine: Steppable, future: Future[Any]
    ) -> None:
        self._simulator, self._caller, self._future = simulator, caller, future
        self._coroutine: Steppable | None = coroutine
        self.waiting: Future[Any] | None = None
        self.resume()

    def resume(self) -> None:
        """Runs the coroutine up to its next wait, or to its end."""
        if self._coroutine is None:  # it was killed while it waited
            return
        current.caller = self._caller
        try:
            self.waiting = self._coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._future.set_result(stop.value)
        except Exception as error:
            self._coroutine = None
            self._simulator.failed.append((self._future, error))
            self._future.set_error(error)
        except EndOfLog:
            self.kill()
        else:
            self.waiting.on_done(self.resume)

    def journal(self) -> JournaledCoroutine | None:
        """Returns the journal of the coroutine; None if it has ended or keeps none."""
        return self._coroutine if isinstance(self._coroutine, JournaledCoroutine) else None

    def fast_forward(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Brings a new coroutine to the wait where the old one stood."""
        journal, waited = self.journal(), self.waiting
        assert journal is not None
        journal.fast_forward(coroutine, self.resume)
        if waited is not None:  # it may wait for another future now, or have registered twice
            waited.set_callback(self.resume, waited is self.waiting)

    def kill(self) -> None:
        """Ends the coroutine where it stands."""
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None


@final
class Process:
    """A coroutine on a node. When the node comes back after a failure, it starts again.

    Args:
      simulator: the simulator of the run.
      node: the node.
      caller: makes the process's calls.
      make: makes the coroutine.

    Attributes:
      future: the future of what the coroutine returns.
    """

    def __init__(
        self,
        simulator: Simulator,
        node: VirtualNode,
        caller: Caller,
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        self._simulator, self.node, self.make = simulator, node, make
        self.caller = caller
        self.future: Future[Any] = Future(("end", node.name))
        self._driver: CoroutineDriver | None = None

    @property
    def waiting(self) -> Future[Any] | None:
        """The future for which it waits; None while its node is down."""
        return self._driver.waiting if self._driver is not None else None

    def start(self, _: object) -> None:
        """Starts the coroutine."""
        coroutine = self.make()
        journals = self._simulator.journals
        steps = JournaledCoroutine(self.caller, coroutine) if journals else coroutine
        self._driver = CoroutineDriver(self._simulator, self.caller, steps, self.future)

    def journal(self) -> JournaledCoroutine | None:
        """Returns the journal of its coroutine; None if that has ended or keeps none."""
        return self._driver.journal() if self._driver is not None else None

    def fast_forward(self) -> None:
        """Brings the coroutine of a restored run to the wait where it stood."""
        if self._driver is not None and self._driver.journal() is not None:
            self._driver.fast_forward(self.make())

    def over(self) -> bool:
        """Returns whether it has ended."""
        return self.future.done()

    def died(self, for_good: bool) -> None:
        """Ends the coroutine, since its node has failed."""
        if self.over():
            return
        self.caller.fail()
        if self._driver is not None:
            self._driver.kill()
            self._driver = None
        if for_good:
            self.future.set_error(NodeDied(f"{self.node.name} died for good"))

    def returned(self) -> None:
        """Starts the coroutine again, since its node is back."""
        if not self.over():
            self.caller.observations = self.caller.observations.again()
            self.start(None)
