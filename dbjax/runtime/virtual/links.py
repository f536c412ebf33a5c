"""The network of a virtual cluster, where it has outages or links of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, final

from dbjax.runtime.cluster import Cluster
from dbjax.runtime.interface import node_generator
from dbjax.runtime.network_faults import Link, Outage, joins, matches

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime

Deliver = Callable[[Any], object]


@final
class LinkModel:
    """Carries messages from the sender's card to the receiver's."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime, self._cluster = runtime, runtime.cluster
        self._ways: dict[tuple[str, str], _Route] = {}

    def send(
        self,
        source: str,
        target: str,
        begin_s: float,
        receive: Callable[[Any], object],
        arrival: tuple[Any, float, Deliver, Any],
    ) -> None:
        """Calls `receive(arrival)` when the first byte is there, and again for a duplicate."""
        if (source, target) not in self._ways:
            self._ways[source, target] = _Route(self._cluster, source, target)
        way, at = self._ways[source, target], self._runtime.at
        first_byte_s = way.leaves_s(begin_s) + way.latency_s
        if not way.link.duplicate_probability:
            at(first_byte_s, receive, arrival)
            return
        card, wire_s, deliver, message = arrival
        arrival = card, wire_s, way.deliver_once, (way.number(), deliver, message)
        at(first_byte_s, receive, arrival)
        if way.draws.random() < way.link.duplicate_probability:
            at(first_byte_s + way.draws.exponential(way.latency_s), receive, arrival)


@final
class _Route:
    """From one node to another. Messages are numbered where some come twice."""

    def __init__(self, cluster: Cluster, source: str, target: str) -> None:
        nodes = source, target
        self.link = next((one for one in cluster.links if joins(one, *nodes)), Link(*nodes))
        latency_s = self.link.latency_s
        self.latency_s = cluster.latency_s if latency_s is None else latency_s
        self.draws = node_generator(cluster.seed or 0, f"network from {source} to {target}")
        cuts = [(cut.at_s, cut.back_s) for cut in cluster.outages if joins(cut, *nodes)]
        self._cuts = sorted(cuts)
        self._sent = self._received = 0

    def leaves_s(self, begin_s: float) -> float:
        """When a message goes on that the sender's card begins to send then."""
        for at_s, back_s in self._cuts:
            if at_s <= begin_s < back_s:
                begin_s = back_s
        return begin_s

    def number(self) -> int:
        self._sent += 1
        return self._sent

    def deliver_once(self, numbered: tuple[int, Deliver, Any]) -> None:
        """Messages come in order: one whose number is not above the last was there before."""
        number, deliver, message = numbered
        if number > self._received:
            self._received = number
            deliver(message)


def require_nodes(cluster: Cluster, names: Collection[str]) -> None:
    """Raises ValueError where an outage or a link names a node that is not there."""
    ways: tuple[Outage | Link, ...] = (*cluster.outages, *cluster.links)
    for way in ways:
        for pattern in (way.a, way.b):
            if not any(matches(pattern, name) for name in names):
                raise ValueError(
                    f"{type(way).__name__} between {way.a!r} and {way.b!r}: no node is "
                    f"{pattern!r}; there are {', '.join(sorted(names)[:6])}, ..."
                )
