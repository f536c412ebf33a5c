"""Failures of virtual nodes, drawn or scheduled, and their recovery."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Protocol, final

from dbjax.runtime.cluster import Cluster
from dbjax.runtime.virtual.node import VirtualNode
from dbjax.runtime.virtual.simulator import Simulator


class Hosted(Protocol):
    """A process or a service, which a node hosts."""

    def over(self) -> bool:
        """Returns whether it has ended, so that a failure of the node would not matter to it."""

    def died(self, for_good: bool) -> None:
        """Is called when the node has failed. `for_good` says that it will not come back."""

    def returned(self) -> None:
        """Is called when the node is back."""


@final
class FailureInjector:
    """Decides when a node fails, with everything that it hosts, and when it is back.

    Attributes:
      alive: whether the node is up.
    """

    def __init__(self, simulator: Simulator, node: VirtualNode) -> None:
        self._simulator, self._node = simulator, node
        self._hosted: list[Hosted] = []
        self.alive = True
        for failure in simulator.cluster.failures:
            if failure.node == node.name and failure.at_s >= simulator.now_s:
                simulator.at_unnoticed(failure.at_s, self._die, (None, failure.back_s))
        self._schedule_next_failure()

    def add(self, hosted: Hosted) -> None:
        """Adds a process or a service that the node hosts."""
        self._hosted.append(hosted)

    def kill(self) -> None:
        """Makes the node fail now, unless it is down already."""
        self._die((None, self._simulator.now_s + self._repair_s()))

    def _over(self) -> bool:
        return all(hosted.over() for hosted in self._hosted)

    def _schedule_next_failure(self) -> None:
        """Draws when the node fails next, and when it is back."""
        machine = self._node.machine
        if math.isfinite(machine.mean_time_between_failures_s):
            draws = self._node.draws
            at_s = self._simulator.now_s + draws.exponential(machine.mean_time_between_failures_s)
            death = (self._node.incarnation, at_s + self._repair_s())
            self._simulator.at_unnoticed(at_s, self._die, death)

    def _repair_s(self) -> float:
        repair_s = self._node.machine.mean_time_to_repair_s
        return self._node.draws.exponential(repair_s) if math.isfinite(repair_s) else math.inf

    def _die(self, death: tuple[int | None, float]) -> None:
        """Stops the node, forever or until `back_s`; what it sent before still arrives.

        Args:
          death: the incarnation for which the failure was drawn (None: any), and `back_s`.
        """
        incarnation, back_s = death
        expected = incarnation in (None, self._node.incarnation)
        if not self.alive or self._over() or not expected:
            return
        self.alive = False
        self._node.record(event="died")
        for hosted in self._hosted:
            hosted.died(math.isinf(back_s))
        if math.isfinite(back_s):
            self._simulator.at(back_s, self._return, None)

    def _return(self, _: object) -> None:
        if not self._over() and self._simulator.running:
            self._come_back()
            self._schedule_next_failure()

    def _come_back(self) -> None:
        self.alive = True
        self._node.come_back()
        self._node.record(event="returned")
        for hosted in self._hosted:
            hosted.returned()


def require_failing_nodes(cluster: Cluster, names: Collection[str]) -> None:
    """Raises ValueError if a scheduled failure names a node that does not exist."""
    for failure in cluster.failures:
        if failure.node not in names:
            raise ValueError(
                f"Failure of {failure.node!r}: no such node; there are "
                f"{', '.join(sorted(names)[:6])}, ..."
            )
