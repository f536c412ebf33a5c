"""What runs on a virtual node: coroutines, from one wait to the next, through deaths."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, final

from dbjax.errors import NodeDied
from dbjax.runtime.context import Caller, current
from dbjax.runtime.interface import Future
from dbjax.runtime.recording import EndOfLog
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.node import VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


class Steppable(Protocol):
    """A coroutine, as far as it is driven."""

    def send(self, value: None, /) -> Any: ...
    def close(self) -> None: ...


@final
class CoroutineDriver:
    """Runs a coroutine on a node, from one wait to the next."""

    __slots__ = ("_caller", "_coroutine", "_future", "_runtime", "waiting")

    def __init__(
        self,
        runtime: VirtualRuntime,
        caller: Caller,
        coroutine: Steppable,
        future: Future[Any],
    ) -> None:
        self._runtime, self._caller, self._future = runtime, caller, future
        self._coroutine: Steppable | None = coroutine
        self.waiting: Future[Any] | None = None
        self.resume()

    def resume(self) -> None:
        if self._coroutine is None:  # killed while it waited
            return
        current.caller = self._caller
        try:
            self.waiting = self._coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._future.set_result(stop.value)
        except Exception as error:
            self._coroutine = None
            self._runtime.failed.append((self._future, error))
            self._future.set_error(error)
        except EndOfLog:
            self.kill()
        else:
            self.waiting.on_done(self.resume)

    def journal(self) -> JournaledCoroutine | None:
        """Of its coroutine, while that lives."""
        return self._coroutine if isinstance(self._coroutine, JournaledCoroutine) else None

    def fast_forward(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Brings a new coroutine to where the old one stood."""
        journal, waited = self.journal(), self.waiting
        assert journal is not None
        journal.fast_forward(coroutine, self.resume)
        if waited is not None:  # it may wait for it by way of another future now
            waited.set_callback(self.resume, waited is self.waiting)

    def kill(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None


@final
class Process:
    """What was spawned on a node, through all the lives of that node."""

    def __init__(
        self,
        runtime: VirtualRuntime,
        node: VirtualNode,
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        self.runtime, self.node, self.make = runtime, node, make
        self.caller = runtime.caller(node, node.name)
        self.future: Future[Any] = Future(("end", node.name))
        self._drive: CoroutineDriver | None = None

    @property
    def waiting(self) -> Future[Any] | None:
        return self._drive.waiting if self._drive is not None else None

    def start(self, _: object) -> None:
        coroutine = self.make()
        steps = JournaledCoroutine(self.caller, coroutine) if self.runtime.journals else coroutine
        self._drive = CoroutineDriver(self.runtime, self.caller, steps, self.future)

    def journal(self) -> JournaledCoroutine | None:
        """Of its coroutine, while that lives."""
        return self._drive.journal() if self._drive is not None else None

    def fast_forward(self) -> None:
        """Of a restored run: brings its coroutine to where it stood."""
        if self._drive is not None and self._drive.journal() is not None:
            self._drive.fast_forward(self.make())

    def over(self) -> bool:
        return self.future.done()

    def died(self, for_good: bool) -> None:
        if self.over():
            return
        self.caller.incarnation += 1
        if self._drive is not None:
            self._drive.kill()
            self._drive = None
        if for_good:
            self.future.set_error(NodeDied(f"{self.node.name} died for good"))

    def returned(self) -> None:
        if not self.over():
            self.start(None)
