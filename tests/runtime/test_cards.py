"""How long the modelled network cards were busy, by hand."""

import numpy as np
import pytest

from dbjax.runtime.cluster import Cluster, Machine
from dbjax.runtime.virtual import VirtualRuntime


class Store:
    def __init__(self, node):
        pass

    def push(self, array):
        return None


async def pusher(node, server):
    await server.call(Store.push, np.zeros(50, np.float32))  # 200 bytes


def busy(until_s, bandwidth):
    """Two replicas push at once to one shard; the run is looked at when it ends."""
    machines = VirtualRuntime(Cluster(machine=Machine(bandwidth_bytes_per_s=bandwidth)))
    server = machines.serve("shard/0", Store)
    for r in range(2):
        machines.spawn(f"replica/{r}", pusher, server)
    machines.run(until_s)
    return machines.cards_busy_s()


def test_cards_are_busy_while_bytes_pass():
    """100 bytes a second: each sends for 2 s; the shard receives one after the other."""
    half_way = busy(1.0, 100.0)
    assert half_way["replica sends"] == pytest.approx(1.0)
    assert half_way["shard receives"] == pytest.approx(1.0)
    whole = busy(10.0, 100.0)
    assert whole["replica sends"] == pytest.approx(2.0)
    assert whole["shard receives"] == whole["busiest"] == pytest.approx(4.0)
    assert whole["replica receives"] == whole["shard sends"] == 0.0


def test_cards_that_take_no_time_are_not_told_of():
    assert busy(1.0, float("inf")) == {}


def test_each_peer_has_a_card_of_its_own_where_there_are_enough():
    """Two replicas, two cards at the shard: neither waits for the other."""
    shard = Machine(bandwidth_bytes_per_s=100.0, cards=2)
    machine = Machine(bandwidth_bytes_per_s=100.0)
    machines = VirtualRuntime(Cluster(machine=machine, machines={"shard/*": shard}))
    server = machines.serve("shard/0", Store)
    for r in range(2):
        machines.spawn(f"replica/{r}", pusher, server)
    assert machines.run() == pytest.approx(2.0)  # with one card it takes 4 s
    assert machines.cards_busy_s()["shard receives"] == pytest.approx(2.0)


@pytest.mark.parametrize("cards", [0, 1.5])
def test_a_machine_has_whole_cards(cards):
    with pytest.raises(ValueError, match=f"cards={cards}"):
        Machine(cards=cards)
