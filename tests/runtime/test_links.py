"""Cuts that heal, slow links and duplicates; clock arithmetic by hand."""

import dataclasses

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.runtime import Cluster, Failure, Link, Machine, Outage, VirtualRuntime
from tests.test_conformance import CLUSTER, TASK


class Listener:
    """A service that says when it was called."""

    def __init__(self, node):
        self.node, self.heard = node, []

    def hear(self, word):
        self.heard.append((word, round(self.node.now(), 6)))
        return round(self.node.now(), 6)


def heard(cluster, *sendings):
    """Words sent from `main`, each at its time, to `service`; when each came, and the replies."""

    async def main(node, service):
        replies = []
        for word, at_s in sendings:
            await node.sleep(max(0.0, at_s - node.now()))
            replies.append(service.call(Listener.hear, word))
        for reply in replies:
            await reply
        return round(node.now(), 6)

    runtime = VirtualRuntime(cluster)
    service = runtime.serve("service", Listener)
    done = runtime.spawn("main", main, service)
    runtime.run()
    return service.service.heard, done.result()


def test_a_cut_holds_back_what_is_sent_meanwhile_in_order():
    cut = Cluster(latency_s=0.1, outages=(Outage("main", "service", 1.0, 2.0),))
    words = ("before", 0.95), ("a", 1.0), ("b", 1.5), ("c", 2.0), ("d", 2.5)
    came, end_s = heard(cut, *words)
    assert came == [("before", 1.05), ("a", 2.1), ("b", 2.1), ("c", 2.1), ("d", 2.6)]
    assert end_s == 2.7


def test_a_cut_holds_back_replies_too():
    cut = Cluster(latency_s=0.1, outages=(Outage("serv*", "*", 1.0, 2.0),))
    assert heard(cut, ("a", 0.95)) == ([("a", 1.05)], 2.1)


def test_cuts_that_overlap_are_one_and_other_nodes_do_not_notice():
    outages = Outage("main", "service", 1.0, 2.0), Outage("main", "service", 1.5, 3.0)
    assert heard(Cluster(outages=outages), ("a", 1.2))[0] == [("a", 3.0)]
    assert heard(Cluster(outages=(Outage("main", "main", 1.0, 2.0),)), ("a", 1.2))[1] == 1.2


def test_a_cut_hides_a_death_until_it_heals():
    cluster = Cluster(
        latency_s=0.1,
        failures=(Failure("service", 1.0, 1.5),),
        outages=(Outage("main", "service", 0.9, 3.0),),
    )
    assert heard(cluster, ("a", 0.95))[0] == [("a", 3.1)]  # to whoever is there then


def test_the_first_link_that_matches_counts():
    links = Link("service", "main", 0.5), Link("*", "*", 0.1)
    assert heard(Cluster(latency_s=0.2, links=links), ("a", 1.0)) == ([("a", 1.5)], 2.0)
    assert heard(Cluster(latency_s=0.2, links=links[1:]), ("a", 1.0)) == ([("a", 1.1)], 1.2)


def test_what_comes_twice_is_dropped_and_costs_the_card():
    machine = Machine(bandwidth_bytes_per_s=40.0)
    twice = Cluster(machine=machine, links=(Link("*", "*", 0.0, duplicate_probability=1.0),))
    words = [(np.float32(word), at_s) for word, at_s in ((1, 0.0), (2, 0.0), (3, 5.0))]
    # 4 bytes: 0.1 s on the wire. With no latency a copy comes right behind its word.
    assert heard(Cluster(machine=machine), *words)[0] == [(1, 0.1), (2, 0.2), (3, 5.1)]
    assert heard(twice, *words)[0] == [(1, 0.1), (2, 0.3), (3, 5.1)]


def test_duplicates_are_drawn_from_the_clusters_seed():
    def run(seed):
        links = (Link("*", "*", 0.01, duplicate_probability=0.5),)
        cluster = dataclasses.replace(CLUSTER, links=links, seed=seed)
        config = downpour.Config(optax.sgd(0.03), replicas=3, shards=2, steps=10)
        return dbjax.run(TASK, config, cluster=cluster).summary

    first, again, other = run(1), run(1), run(2)
    assert (first["time_s"], first["params_sha256"]) == (again["time_s"], again["params_sha256"])
    assert first["time_s"] != other["time_s"]
    assert first["updates"] == 30
    assert first["repeated_pushes"] == 0


def test_links_that_differ_in_nothing_change_nothing():
    config = downpour.Config(optax.sgd(0.03), replicas=3, shards=2, steps=10)
    plain = dbjax.run(TASK, config, cluster=CLUSTER).summary
    same = dataclasses.replace(CLUSTER, links=(Link("*", "*"),))
    linked = dbjax.run(TASK, config, cluster=same).summary
    assert (plain["time_s"], plain["params_sha256"]) == (linked["time_s"], linked["params_sha256"])


@pytest.mark.parametrize(("at_s", "back_s"), [(1.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))])
def test_a_cut_has_to_heal(at_s, back_s):
    with pytest.raises(ValueError, match="use a Failure for a node that never comes back"):
        Outage("a", "b", at_s, back_s)


def test_wrong_links_are_refused():
    with pytest.raises(ValueError, match="latency_s=-1"):
        Link("a", "b", latency_s=-1.0)
    with pytest.raises(ValueError, match="duplicate_probability=2"):
        Link("a", "b", duplicate_probability=2.0)
    for special in ({"outages": (Outage("main", "nobody", 1, 2),)}, {"links": (Link("no*", "*"),)}):
        with pytest.raises(ValueError, match="no node is 'no"):
            heard(Cluster(**special), ("a", 0.0))


def test_every_way_has_draws_of_its_own():
    """Message k has 2^k bytes, so that the time a card is busy says which ones came twice."""

    async def main(node, service):
        replies = [service.call(Listener.hear, np.zeros(2**k, np.uint8)) for k in range(16)]
        for reply in replies:
            await reply

    link = Link("*", "*", 0.01, duplicate_probability=0.5)
    machine = Machine(bandwidth_bytes_per_s=1.0)
    runtime = VirtualRuntime(Cluster(machine=machine, links=(link,)))
    for side in ("left", "right"):
        runtime.spawn(f"from {side}", main, runtime.serve(side, Listener))
    runtime.run()
    busy_s = runtime.cards_busy_s()
    once = 2**16 - 1
    twice = [round(busy_s[f"{side} receives"]) - once for side in ("left", "right")]
    assert all(0 < bytes_ < once for bytes_ in twice)
    assert twice[0] != twice[1]
