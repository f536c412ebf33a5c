"""Deaths and returns of a virtual node, drawn or scheduled."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol, final

from dbjax.runtime.cluster import Cluster
from dbjax.runtime.virtual.node import VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


class NodeProcess(Protocol):
    """What lives on a node."""

    def over(self) -> bool:
        """Whether it has ended, so that a death would not matter to it."""

    def died(self, for_good: bool) -> None: ...

    def returned(self) -> None: ...


@final
class FailureInjector:
    """When a node dies, with all that lives on it, and when it is there again."""

    def __init__(self, runtime: VirtualRuntime, node: VirtualNode) -> None:
        self._runtime, self._node = runtime, node
        self._residents: list[NodeProcess] = []
        self.alive = True
        for failure in runtime.cluster.failures:
            if failure.node == node.name and failure.at_s >= runtime.now_s:
                runtime.at(failure.at_s, self._die, (None, failure.back_s), unnoticed=True)
        self._plan_failure()

    def add(self, resident: NodeProcess) -> None:
        self._residents.append(resident)

    def _over(self) -> bool:
        return all(resident.over() for resident in self._residents)

    def _plan_failure(self) -> None:
        """Draws when the node dies next, and when it is back."""
        machine = self._node.machine
        if math.isfinite(machine.mean_time_between_failures_s):
            draws = self._node.draws
            at_s = self._runtime.now_s + draws.exponential(machine.mean_time_between_failures_s)
            death = (self._node.incarnation, at_s + self._repair_s())
            self._runtime.at(at_s, self._die, death, unnoticed=True)

    def kill(self) -> None:
        """It dies now; nothing happens to one that is dead."""
        self._die((None, self._runtime.now_s + self._repair_s()))

    def _repair_s(self) -> float:
        repair_s = self._node.machine.mean_time_to_repair_s
        return self._node.draws.exponential(repair_s) if math.isfinite(repair_s) else math.inf

    def _die(self, death: tuple[int | None, float]) -> None:
        """Stops, for ever or until `back_s`; what was sent before still arrives."""
        incarnation, back_s = death
        if not self.alive or self._over() or incarnation not in (None, self._node.incarnation):
            return
        self.alive = False
        self._node.record(event="died")
        for resident in self._residents:
            resident.died(math.isinf(back_s))
        if math.isfinite(back_s):
            self._runtime.at(back_s, self._return, None)

    def _return(self, _: object) -> None:
        if not self._over() and self._runtime.running:
            self._come_back()
            self._plan_failure()

    def _come_back(self) -> None:
        self.alive = True
        self._node.come_back()
        self._node.record(event="returned")
        for resident in self._residents:
            resident.returned()


def require_failing_nodes(cluster: Cluster, names: Collection[str]) -> None:
    """Raises ValueError where a failure names a node that cannot die."""
    for failure in cluster.failures:
        if failure.node not in names:
            raise ValueError(
                f"Failure of {failure.node!r}: no such node; there are "
                f"{', '.join(sorted(names)[:6])}, ..."
            )
