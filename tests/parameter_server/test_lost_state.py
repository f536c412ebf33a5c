"""Shards that lost what they knew: cases that the simulation found.

See docs/decisions/simulation-testing.md.
"""

import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax import Failure
from dbjax.algorithms import downpour, sgd
from dbjax.checkpoint.manager import Every
from dbjax.errors import StateLost
from dbjax.parameter_server import Shard, server_rule
from dbjax.parameter_server.gradient_sums import DeferredSum, UnorderedSum, add_sums
from dbjax.parameter_server.synchronous import Behind, SynchronousShard
from dbjax.parameter_server.vector_shard import BEGINNING, VectorShard
from tests.parameter_server.test_shard import push
from tests.test_conformance import TASK

SLICE = {"w": jnp.zeros(3)}
RULE = server_rule(optax.sgd(0.5))


def node(returned=False):
    return types.SimpleNamespace(name="shard/0", returned=returned, touched=lambda arrays: None)


def vector_shard(iterations):
    shard = VectorShard(node(), SLICE, UnorderedSum)
    for iteration in range(iterations):
        shard.finish(iteration + 1, iteration, 0, f"memo {iteration}")
    return shard


def test_iterations_that_were_taken_back_are_not_there_any_more():
    shard = vector_shard(3)
    assert shard.standing()[0] == [BEGINNING, 1, 2]
    assert shard.rewind(1, 3) == "memo 1"
    shard.finish(4, 2, 0, "memo 2 again")
    assert shard.standing()[0] == [BEGINNING, 1, 2]
    assert shard.rewind(2, 4) == "memo 2 again"


def test_a_shard_does_not_go_back_to_what_it_does_not_know():
    with pytest.raises(StateLost, match="iteration 2"):
        vector_shard(2).rewind(2, 2)


def test_a_warm_start_ends_though_updates_were_lost():
    shard = Shard(node(), SLICE, RULE)
    shard.fetch("r")
    waiting = shard.reached(4)
    shard.push(push(2))  # 0 and 1 are lost
    assert not waiting.done()
    shard.push(push(3))
    assert waiting.done()
    restored = Shard(node(returned=True), SLICE, RULE)
    assert not restored.reached(4).done()
    restored.restore(restored.state(), checkpoint=True)
    assert restored.reached(4).done()


def synchronous():
    shard = SynchronousShard(node(), SLICE, RULE, 2)
    for replica in "ab":
        shard.fetch(replica)
    return shard


def test_a_replica_is_told_that_the_others_wait_at_a_later_step():
    shard = synchronous()
    first = shard.step(push(0, replica="a"))
    later = shard.step(push(2, replica="b"))  # of a shard that has lost two steps
    assert first.error().step == 2
    with pytest.raises(Behind, match="step 2"):
        shard.step(push(1, replica="a"))
    assert not later.done()
    shard.step(push(2, replica="a"))
    assert later.done()
    assert shard.report().counts.lost == 2


def test_of_two_gradients_for_one_step_the_first_counts():
    shard = synchronous()
    shard.step(push(0, 1.0, replica="a"))
    shard.step(push(0, 9.0, replica="a"))  # of its next life
    shard.step(push(0, 1.0, replica="b"))
    assert np.asarray(shard.peek().params["w"]).tolist() == [-0.5] * 3


def test_where_all_the_others_are_done_nobody_is_waited_for():
    shard = synchronous()
    waiting = shard.step(push(0, replica="a"))
    end = shard.done("b")
    assert waiting.result().version == 0
    assert shard.step(push(1, replica="a")).done()
    assert not end.done()
    shard.done("a")
    assert end.done()


def test_a_replica_that_returns_when_the_others_are_done_and_a_shard_has_lost_all():
    # its last push, at 1.02 s, is on its way when it dies; a step takes 0.1 s and two messages
    failures = (Failure("replica/2", 1.0205, 1.5), Failure("shard/0", 1.2, 1.3))
    config = sgd.Config(optax.sgd(0.03), replicas=3, shards=2, steps=10)
    cluster = dbjax.Cluster(0.1, latency_s=1e-3, failures=failures)
    assert dbjax.run(TASK, config, cluster=cluster).summary["deaths"] == 2


def test_checkpoints_go_on_when_a_shard_was_dead_for_longer_than_their_interval():
    config = downpour.Config(optax.sgd(0.03), replicas=2, shards=1, steps=30)
    cluster = dbjax.Cluster(0.1, failures=(Failure("shard/0", 1.0, 2.0),))
    every = Every(seconds=0.3)
    assert dbjax.run(TASK, config, cluster=cluster, checkpoint_every=every).summary["deaths"] == 1


def test_sums_at_equal_parameters_of_two_copies_are_added():
    def deferred(value):
        return DeferredSum(lambda *_: None, ({"w": jnp.full(3, value)},), (0,), 1)

    assert add_sums([deferred(1.0), deferred(1.0)]).portions == (0, 0)
    with pytest.raises(RuntimeError, match="different parameters"):
        add_sums([deferred(1.0), deferred(2.0)])
