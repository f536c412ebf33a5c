"""What runs on a virtual node: coroutines, from one wait to the next, through deaths."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, final

from dbjax.errors import NodeDied
from dbjax.runtime.base import Future
from dbjax.runtime.callers import Caller, current
from dbjax.runtime.observed import OutOfScript
from dbjax.runtime.virtual.node import VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class Drive:
    """Runs a coroutine on a node, from one wait to the next."""

    __slots__ = ("_caller", "_coroutine", "_future", "_runtime", "waiting")

    def __init__(
        self,
        runtime: VirtualRuntime,
        caller: Caller,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
    ) -> None:
        self._runtime, self._caller, self._future = runtime, caller, future
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
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
        except OutOfScript:
            self.kill()
        else:
            self.waiting.on_done(self.resume)

    def kill(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None


@final
class Main:
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
        self._drive: Drive | None = None

    @property
    def waiting(self) -> Future[Any] | None:
        return self._drive.waiting if self._drive is not None else None

    def start(self, _: object) -> None:
        self._drive = Drive(self.runtime, self.caller, self.make(), self.future)

    def over(self) -> bool:
        return self.future.done()

    def died(self, for_good: bool) -> None:
        if self.over():
            return
        self.caller.life += 1
        if self._drive is not None:
            self._drive.kill()
            self._drive = None
        if for_good:
            self.future.set_error(NodeDied(f"{self.node.name} died for good"))

    def returned(self) -> None:
        if not self.over():
            self.start(None)
