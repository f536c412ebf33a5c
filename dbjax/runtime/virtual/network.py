"""The network of a virtual cluster: network cards, transfers, links, outages and duplicates.

A node has one network card or several. Each card sends one transfer at a time and receives one at
a time, in order of arrival. Messages between two nodes always take the same two cards, so they
keep their order.
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
        self.name, self.bandwidth_bytes_per_s = name, machine.bandwidth_bytes_per_s
        self.egress_free_s = 0.0  # when the sending side will have sent all it was given
        self.ingress_free_s = -1.0  # when the receiving side will have received all that came
        self.egress_busy_s = self.ingress_busy_s = 0.0  # the total busy time up to those moments


Arrival = tuple[NetworkCard, float, Deliver, Any]


@final
class NetworkInterface(NetworkCard):
    """The connection of a node to the network: one card or several.

    A node with several cards assigns them to its peers in turn, in order of first contact.

    Args:
      name: the name of the node.
      machine: the machine on which the node runs.
      cards: the number of its network cards.

    Attributes:
      cards: the cards, if there are several. A single card is the interface itself.
    """

    def __init__(self, name: str, machine: Machine, cards: int) -> None:
        super().__init__(name, machine)  # a single card is the interface itself
        self.cards = [NetworkCard(name, machine) for _ in range(cards)] if cards > 1 else []
        self._card_of: dict[str, NetworkCard] = {}

    def card_to(self, peer: str) -> NetworkCard:
        """Returns the card that communicates with another node."""
        if not self.cards:
            return self
        if peer not in self._card_of:
            self._card_of[peer] = self.cards[len(self._card_of) % len(self.cards)]
        return self._card_of[peer]


@final
class Network:
    """Carries messages between nodes, with a `LinkModel` if the cluster has links or outages."""

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

        The sender's card starts when it is free. The receiver's card starts `latency_s` later, or
        when it is free. The transfer streams through both, so each is busy for the size of the
        message divided by the bandwidth of the slower card.

        Args:
          source: the interface of the sender.
          target: the interface of the receiver.
          size: the size of the message, in bytes.
          deliver: the function that receives the message.
          message: the message.
        """
        simulator = self._simulator
        if source is target:
            simulator.at(simulator.now_s, deliver, message)
            return
        sender = source.card_to(target.name) if source.cards else source
        receiver = target.card_to(source.name) if target.cards else target
        begin_s, free_s, wire_s = simulator.now_s, sender.egress_free_s, 0.0
        if free_s > begin_s:
            begin_s = free_s
        if size:
            bandwidth = source.bandwidth_bytes_per_s
            if target.bandwidth_bytes_per_s < bandwidth:
                bandwidth = target.bandwidth_bytes_per_s
            wire_s = size * self._size_scale / bandwidth
            sender.egress_busy_s += wire_s
        sender.egress_free_s = begin_s + wire_s
        arrival = (receiver, wire_s, deliver, message)
        if self._links is None:
            simulator.at(begin_s + self._latency_s, self._receive, arrival)
        else:
            self._links.carry(source.name, target.name, begin_s, self._receive, arrival)

    def _receive(self, arrival: Arrival) -> None:
        card, wire_s, deliver, message = arrival
        begin_s, free_s = self._simulator.now_s, card.ingress_free_s
        if free_s >= begin_s:  # even at equal times, an earlier message is in the heap already
            begin_s = free_s
        elif wire_s == 0:
            deliver(message)
            return
        end_s = card.ingress_free_s = begin_s + wire_s
        card.ingress_busy_s += wire_s
        self._simulator.at(end_s, deliver, message)


@final
class LinkModel:
    """Carries messages from card to card in a cluster with links or outages."""

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
    """The way from one node to another. If messages may come twice, it numbers them."""

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
        """Returns when a message leaves the sender's card, which is ready to send at `begin_s`."""
        for at_s, back_s in self._outages:
            if at_s <= begin_s < back_s:
                begin_s = back_s
        return begin_s

    def number(self) -> int:
        """Returns the number of the next message: 1, 2, 3, ..."""
        self._sent += 1
        return self._sent

    def deliver_once(self, numbered: tuple[int, Deliver, Any]) -> None:
        """Drops duplicates. Messages arrive in order, so only a larger number is a new message."""
        number, deliver, message = numbered
        if number > self._received:
            self._received = number
            deliver(message)


def busy_s(interfaces: Iterable[NetworkInterface], now_s: float) -> dict[str, float]:
    """Returns how long network cards were busy until now, in seconds.

    Values are means over the cards of a kind of node, in one direction, such as "shard sends".
    "busiest" is the busiest direction of any card. The dict is empty if no message has taken time.
    """
    found: dict[str, list[float]] = {}
    for interface in interfaces:
        kind = kind_label(interface.name)
        for card in interface.cards or [interface]:  # each is busy without a break until it is free
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
    """Raises ValueError if an outage or a link names a node that does not exist."""
    faults: tuple[Outage | Link, ...] = (*cluster.outages, *cluster.links)
    for fault in faults:
        for pattern in (fault.a, fault.b):
            if not any(matches(pattern, name) for name in names):
                raise ValueError(
                    f"{type(fault).__name__} between {fault.a!r} and {fault.b!r}: no node is "
                    f"{pattern!r}; there are {', '.join(sorted(names)[:6])}, ..."
                )
