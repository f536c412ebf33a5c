"""How busy the modelled network cards were."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from dbjax.runtime.virtual.node import NetworkCard, VirtualNode


def busy_s(nodes: Iterable[VirtualNode], now_s: float) -> dict[str, float]:
    """Seconds until now, by kind of node and way: means over cards, and the busiest of all.

    Empty where no message has taken time.
    """
    found: dict[str, list[float]] = {}
    for node in nodes:
        kind = re.sub(r"/\d+", "", node.name)
        cards: Iterable[NetworkCard | VirtualNode] = node.cards or [node]
        for card in cards:  # one is busy without a break until it is free
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
