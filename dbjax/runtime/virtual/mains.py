"""What runs on a virtual node: coroutines, from one wait to the next, through deaths."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, final

from dbjax.errors import NodeDied
from dbjax.runtime.base import Future
from dbjax.runtime.virtual.node import VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class Drive:
    """Runs a coroutine on a node, from one wait to the next."""

    __slots__ = ("_coroutine", "_future", "_node", "_runtime", "waiting")

    def __init__(
        self,
        runtime: VirtualRuntime,
        node: VirtualNode,
        coroutine: Coroutine[Any, Any, Any],
        future: Future[Any],
    ) -> None:
        self._runtime, self._node, self._future = runtime, node, future
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
        self.waiting: Future[Any] | None = None
        self.resume()

    def resume(self) -> None:
        if self._coroutine is None:  # killed while it waited
            return
        self._runtime.active = self._node
        try:
            self.waiting = self._coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._future.set_result(stop.value)
        except Exception as error:
            self._coroutine = None
            self._runtime.failed.append(self._future)
            self._future.set_error(error)
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
        self.future: Future[Any] = Future(("end", node.name))
        self._drive: Drive | None = None

    @property
    def waiting(self) -> Future[Any] | None:
        return self._drive.waiting if self._drive is not None else None

    def start(self, _: object) -> None:
        self._drive = Drive(self.runtime, self.node, self.make(), self.future)

    def plan_failure(self) -> None:
        """Draws when the node dies next, and when it is back."""
        machine = self.node.machine
        if math.isfinite(machine.mean_time_between_failures_s):
            draws = self.node.draws
            at_s = self.runtime.now_s + draws.exponential(machine.mean_time_between_failures_s)
            repair_s = machine.mean_time_to_repair_s
            repair_s = draws.exponential(repair_s) if math.isfinite(repair_s) else math.inf
            death = (self.node.incarnation, at_s + repair_s)
            self.runtime.at(at_s, self.die, death, unnoticed=True)

    def die(self, death: tuple[int | None, float]) -> None:
        """Stops, for ever or until `back_s`; what was sent before still arrives."""
        life, back_s = death
        if self._drive is None or self.future.done() or life not in (None, self.node.incarnation):
            return
        self._drive.kill()
        self._drive = None
        self.node.record(event="died")
        if math.isfinite(back_s):
            self.runtime.at(back_s, self._return, None)
        else:
            self.future.set_error(NodeDied(f"{self.node.name} died for good"))

    def _return(self, _: object) -> None:
        self.node.incarnation += 1
        self.node.record(event="returned")
        self.plan_failure()
        self.start(None)
