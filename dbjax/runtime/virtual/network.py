"""The network of a virtual cluster: cards, transfers, links of their own, outages, duplicates.

A node has one network card, or several. Each card sends one transfer at a time and receives one
at a time, in order of arrival. Between two nodes a message always takes the same two cards, so
messages between them keep their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any, final

from dbjax.runtime.cluster import Cluster, Link, Machine, Outage, joins, matches
from dbjax.runtime.interface import node_generator
from dbjax.runtime.node_names import kind_label
from dbjax.runtime.virtual.simulator import Simulator

Deliver = Callable[[Any], object]


class NetworkCard:
    """A full-duplex network card: when each direction is free, and how long it was busy."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.egress_free_s = 0.0  # when the sending side has sent everything it was given
        self.ingress_free_s = -1.0  # when the receiving side has received everything that came
        self.egress_busy_s = self.ingress_busy_s = 0.0  # in total, up to those moments


Arrival = tuple[NetworkCard, float, Deliver, Any]


@final
class NetworkInterface(NetworkCard):
    """What connects a node to the network: one card, or several.

    A node with several cards deals them out to its peers in order of first contact.

    Args:
      cards: how many the node has.
    """

    def __init__(self, name: str, machine: Machine, cards: int) -> None:
        super().__init__(name, machine)  # of one card, the interface is the card
        self.cards = [NetworkCard(name, machine) for _ in range(cards)] if cards > 1 else []
        self._card_of: dict[str, NetworkCard] = {}

    def card_to(self, peer: str) -> NetworkCard:
        """The card that talks to another node."""
        if not self.cards:
            return self
        if peer not in self._card_of:
            self._card_of[peer] = self.cards[len(self._card_of) % len(self.cards)]
        return self._card_of[peer]


@final
class Network:
    """Carries messages between nodes. `LinkModel` takes part where there are links or outages."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator, cluster = simulator, simulator.cluster
        self._latency_s, self._size_scale = cluster.latency_s, cluster.size_scale
        self._links = LinkModel(simulator) if cluster.outages or cluster.links else None

    def send(
        self,
        source: NetworkInterface,
        target: NetworkInterface,
        size: int,
        deliver: Deliver,
        message: Any,
    ) -> None:
        """Calls `deliver(message)` when the message has passed the cards of both nodes.

        The sender's card is busy first; `latency_s` later the receiver's card is, as soon as it is
        free. Both are busy for size / bandwidth of the slower card, since they work at once.

        Args:
          size: in bytes.
        """
        simulator = self._simulator
        if source is target:
            simulator.at(simulator.now_s, deliver, message)
            return
        sender = source.card_to(target.name) if source.cards else source
        receiver = target.card_to(source.name) if target.cards else target
        bandwidth = min(source.machine.bandwidth_bytes_per_s, target.machine.bandwidth_bytes_per_s)
        wire_s = size * self._size_scale / bandwidth
        begin_s = max(simulator.now_s, sender.egress_free_s)
        sender.egress_free_s = begin_s + wire_s
        sender.egress_busy_s += wire_s
        arrival = (receiver, wire_s, deliver, message)
        if self._links is None:
            simulator.at(begin_s + self._latency_s, self._receive, arrival)
        else:
            self._links.carry(source.name, target.name, begin_s, self._receive, arrival)

    def _receive(self, arrival: Arrival) -> None:
        card, wire_s, deliver, message = arrival
        now_s, free_s = self._simulator.now_s, card.ingress_free_s
        if wire_s == 0 and free_s < now_s:
            deliver(message)
        else:  # at equal times, too, what came before is delivered first: it is in the heap
            end_s = card.ingress_free_s = max(now_s, free_s) + wire_s
            card.ingress_busy_s += wire_s
            self._simulator.at(end_s, deliver, message)


@final
class LinkModel:
    """Carries messages from card to card where links differ or the network is cut for a while."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._routes: dict[tuple[str, str], _Route] = {}

    def carry(
        self, source: str, target: str, begin_s: float, receive: Deliver, arrival: Arrival
    ) -> None:
        """Calls `receive(arrival)` when the first byte arrives, and again for a duplicate."""
        if (source, target) not in self._routes:
            self._routes[source, target] = _Route(self._simulator.cluster, source, target)
        route, at = self._routes[source, target], self._simulator.at
        first_byte_s = route.leaves_s(begin_s) + route.latency_s
        if not route.link.duplicate_probability:
            at(first_byte_s, receive, arrival)
            return
        card, wire_s, deliver, message = arrival
        arrival = card, wire_s, route.deliver_once, (route.number(), deliver, message)
        at(first_byte_s, receive, arrival)
        if route.draws.random() < route.link.duplicate_probability:
            at(first_byte_s + route.draws.exponential(route.latency_s), receive, arrival)


@final
class _Route:
    """The way from one node to another. Where messages may come twice, they are numbered."""

    def __init__(self, cluster: Cluster, source: str, target: str) -> None:
        nodes = source, target
        self.link = next((one for one in cluster.links if joins(one, *nodes)), Link(*nodes))
        latency_s = self.link.latency_s
        self.latency_s = cluster.latency_s if latency_s is None else latency_s
        self.draws = node_generator(cluster.seed or 0, f"network from {source} to {target}")
        outages = [(outage.at_s, outage.back_s) for outage in cluster.outages
                   if joins(outage, *nodes)]  # fmt: skip
        self._outages = sorted(outages)
        self._sent = self._received = 0

    def leaves_s(self, begin_s: float) -> float:
        """When a message leaves that the sender's card begins to send at `begin_s`."""
        for at_s, back_s in self._outages:
            if at_s <= begin_s < back_s:
                begin_s = back_s
        return begin_s

    def number(self) -> int:
        """The number of the next message: 1, 2, 3, ..."""
        self._sent += 1
        return self._sent

    def deliver_once(self, numbered: tuple[int, Deliver, Any]) -> None:
        """Drops duplicates. Messages arrive in order, so only a larger number is a new message."""
        number, deliver, message = numbered
        if number > self._received:
            self._received = number
            deliver(message)


def busy_s(interfaces: Iterable[NetworkInterface], now_s: float) -> dict[str, float]:
    """How long network cards were busy until now, in seconds, by kind of node and direction.

    Values are means over the cards of a kind; "busiest" is the busiest direction of any card.
    Empty where no message has taken time.
    """
    found: dict[str, list[float]] = {}
    for interface in interfaces:
        kind = kind_label(interface.name)
        for card in interface.cards or [interface]:  # a card is busy without a break until free
            sent_s = card.egress_busy_s - max(0.0, card.egress_free_s - now_s)
            received_s = card.ingress_busy_s - max(0.0, card.ingress_free_s - now_s)
            found.setdefault(f"{kind} sends", []).append(sent_s)
            found.setdefault(f"{kind} receives", []).append(received_s)
    every = list(itertools.chain.from_iterable(found.values()))
    if not any(every):
        return {}
    return {name: sum(times) / len(times) for name, times in found.items()} | {
        "busiest": max(every)
    }


def require_nodes(cluster: Cluster, names: Collection[str]) -> None:
    """Raises ValueError where an outage or a link names a node that does not exist."""
    faults: tuple[Outage | Link, ...] = (*cluster.outages, *cluster.links)
    for fault in faults:
        for pattern in (fault.a, fault.b):
            if not any(matches(pattern, name) for name in names):
                raise ValueError(
                    f"{type(fault).__name__} between {fault.a!r} and {fault.b!r}: no node is "
                    f"{pattern!r}; there are {', '.join(sorted(names)[:6])}, ..."
                )
