"""Clusters of configs: what they list, and mistakes in it."""

import pytest

import dbjax
from experiments import build
from experiments.defaults import defaults

LISTED = {
    "failures": ({"node": "shard/0", "at_s": 1.0, "back_s": 2.0},),
    "outages": ({"a": "replica/*", "b": "shard/0", "at_s": 1.0, "back_s": 2.0},),
    "links": ({"a": "replica/1", "b": "*", "latency_s": 0.5, "duplicate_probability": 0.1},),
}


def cluster(**listed):
    config = defaults()
    config.cluster.update(listed)
    return build.cluster(config)


def test_what_a_config_lists_reaches_the_cluster():
    made = cluster(**LISTED)
    assert made.failures == (dbjax.Failure("shard/0", 1.0, 2.0),)
    assert made.outages == (dbjax.Outage("replica/*", "shard/0", 1.0, 2.0),)
    assert made.links == (dbjax.Link("replica/1", "*", 0.5, 0.1),)


@pytest.mark.parametrize("name", ["replica/1*", "shard/2/backup", "*", "coordinator", "replica/99"])
def test_machines_may_be_of_any_node(name):
    made = cluster(machines={name: {"speed": 2.0}})
    assert made.machines == {name: dbjax.Machine(speed=2.0)}


WRONG = [
    ({"outages": ({"a": "x", "b": "y", "at": 1.0},)}, "outages has no 'at'; nearest: 'at_s'"),
    ({"outages": ({"a": "x", "b": "y", "at_s": 1.0},)}, "cluster.outages needs 'back_s'"),
    ({"failures": ({"node": "x", "at_s": "soon"},)}, "at_s='soon' must be float"),
    ({"machines": {"replicas/0": {"speed": 2.0}}}, r"machines\['replicas/0'\] matches no node"),
    ({"machines": {"replica/0": 3}}, r"machines\['replica/0'\]: 3 must be a dict of some of speed"),
    ({"links": ("slow",)}, "'slow' must be a dict of some of a, b, latency_s"),
    ({"links": ({"a": "x", "b": "y", "latency_s": -1.0},)}, "latency_s=-1.0 must be finite"),
]


@pytest.mark.parametrize(("listed", "said"), WRONG)
def test_mistakes_are_named(listed, said):
    with pytest.raises(ValueError, match=said):
        cluster(**listed)
