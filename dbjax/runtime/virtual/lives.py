"""Deaths and returns of a virtual node, drawn or scheduled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from dbjax.runtime.virtual.node import VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class Lives:
    """When something on a node dies, and when it is there again.

    Args:
      died: called at a death, with whether it is for good.
      returned: called when the node is back.
    """

    def __init__(
        self,
        runtime: VirtualRuntime,
        node: VirtualNode,
        died: Callable[[bool], None],
        returned: Callable[[], None],
    ) -> None:
        self._runtime, self._node, self._died, self._returned = runtime, node, died, returned
        self.alive = True
        self.over = False  # what lived here has ended: nothing more can die
        runtime.mortal.add(node.name)
        for failure in runtime.cluster.failures:
            if failure.node == node.name:
                runtime.at(failure.at_s, self._die, (None, failure.back_s), unnoticed=True)
        self._plan_failure()

    def _plan_failure(self) -> None:
        """Draws when the node dies next, and when it is back."""
        machine = self._node.machine
        if math.isfinite(machine.mean_time_between_failures_s):
            draws = self._node.draws
            at_s = self._runtime.now_s + draws.exponential(machine.mean_time_between_failures_s)
            repair_s = machine.mean_time_to_repair_s
            repair_s = draws.exponential(repair_s) if math.isfinite(repair_s) else math.inf
            death = (self._node.incarnation, at_s + repair_s)
            self._runtime.at(at_s, self._die, death, unnoticed=True)

    def _die(self, death: tuple[int | None, float]) -> None:
        """Stops, for ever or until `back_s`; what was sent before still arrives."""
        life, back_s = death
        if not self.alive or self.over or life not in (None, self._node.incarnation):
            return
        self.alive = False
        self._node.record(event="died")
        self._died(math.isinf(back_s))
        if math.isfinite(back_s):
            self._runtime.at(back_s, self._return, None)

    def _return(self, _: object) -> None:
        if self.over or not self._runtime.running:
            return
        self.alive = True
        self._node.incarnation += 1
        self._node.record(event="returned")
        self._plan_failure()
        self._returned()
