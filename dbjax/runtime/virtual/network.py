"""How messages of a virtual cluster pass from card to card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from dbjax.runtime.virtual.links import LinkModel
from dbjax.runtime.virtual.node import NetworkCard, VirtualNode

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime

Arrival = tuple[NetworkCard | VirtualNode, float, Callable[[Any], object], Any]


@final
class Network:
    """Between all nodes; where there are outages or links of their own, `LinkModel` carries on."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime, cluster = runtime, runtime.cluster
        self._latency_s, self._size_scale = cluster.latency_s, cluster.size_scale
        self._links = LinkModel(runtime) if cluster.outages or cluster.links else None

    def send(
        self,
        source: VirtualNode,
        target: VirtualNode,
        size: int,
        deliver: Callable[[Any], object],
        message: Any,
    ) -> None:
        """Delivers over two cards, each one transfer at a time and in order.

        The sender's card is busy first; `latency_s` later the receiver's, as soon as it
        is free. Both for size / bandwidth, of the slower card: they work at once. Between two
        nodes it is always the same two cards, so that messages keep their order.
        """
        runtime = self._runtime
        if source is target:
            runtime.at(runtime.now_s, deliver, message)
            return
        sender = source.card_to(target) if source.cards else source
        receiver = target.card_to(source) if target.cards else target
        bandwidth = min(source.machine.bandwidth_bytes_per_s, target.machine.bandwidth_bytes_per_s)
        wire_s = size * self._size_scale / bandwidth
        begin_s = max(runtime.now_s, sender.egress_free_s)
        sender.egress_free_s = begin_s + wire_s
        sender.egress_busy_s += wire_s
        arrival = (receiver, wire_s, deliver, message)
        if self._links is None:
            runtime.at(begin_s + self._latency_s, self._receive, arrival)
        else:
            self._links.send(source.name, target.name, begin_s, self._receive, arrival)

    def _receive(self, arrival: Arrival) -> None:
        target, wire_s, deliver, message = arrival
        now_s, free_s = self._runtime.now_s, target.ingress_free_s
        if wire_s == 0 and free_s < now_s:
            deliver(message)
        else:  # at equal times too what came before is delivered first: it is in the heap
            end_s = target.ingress_free_s = max(now_s, free_s) + wire_s
            target.ingress_busy_s += wire_s
            self._runtime.at(end_s, deliver, message)
