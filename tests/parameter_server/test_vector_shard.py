"""A shard of Sandblaster by hand: commands in order, each portion once, trials unseen."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.errors import StateLost
from dbjax.optim import Combine, Dots
from dbjax.parameter_server.gradient_sums import OrderedSum, ShardSum, UnorderedSum
from dbjax.parameter_server.vector_shard import Contribution, VectorShard

NODE = types.SimpleNamespace(
    name="shard/0", returned=False, count_memory_traffic=lambda arrays: None
)


def shard(accruing=UnorderedSum):
    return VectorShard(NODE, {"w": jnp.ones(2)}, accruing)


def contribution(evaluation, value, *portions, part="only", place=0):
    piece = ShardSum(jnp.float32(value), {"w": jnp.full(2, float(value))})
    return Contribution(evaluation, part, portions, place, piece, 8)


def gradient(one, name="gradient"):
    return np.asarray(one._vectors[name]["w"]).tolist()


def test_gradients_are_summed_and_each_portion_counts_once():
    one = shard()
    one.begin(1, 5, ())
    one.accumulate(contribution(5, 1.0, 0, 1))
    one.accumulate(contribution(5, 1.0, 0, 1))  # a copy
    one.accumulate(contribution(5, 2.0, 2))
    one.accumulate(contribution(4, 8.0, 3))  # of an evaluation that is over
    one.accumulate(contribution(6, 8.0, 3))  # of one that is not here yet
    with pytest.raises(RuntimeError, match=r"portions \[1\] were counted with others"):
        one.accumulate(contribution(5, 1.0, 1, 3))
    assert one.close(2, 5, {"only": 1.0}) == [3.0]
    assert gradient(one) == [3.0, 3.0]
    counts = one.report().counts
    assert (counts.repeated, counts.bytes_pushed) == (2, 6 * 8)


def test_parts_of_a_sample_have_gradients_of_their_own():
    one = shard()
    one.begin(1, 5, ())
    for part, value in (("after", 4.0), ("before", 1.0), ("only", 2.0)):
        one.accumulate(contribution(5, value, int(value), part=part))
    losses = one.close(2, 5, {"before": 10.0, "only": 2.0, "after": 0.5})
    assert losses == [1.0, 2.0, 4.0]
    assert gradient(one) == [7.0, 7.0]  # the sum, unscaled
    assert [gradient(one, part) for part in ("before", "only", "after")] == [
        [10.0, 10.0], [4.0, 4.0], [2.0, 2.0]
    ]  # fmt: skip


def test_sums_in_a_fixed_order_wait_for_what_comes_late():
    """In float32 1 + 1e8 - 1e8 is 0 in that order, and 1 in another."""
    values = (1.0, 1e8, -1e8)
    for accruing, order, expected in (
        (OrderedSum, (0, 1, 2), 0.0), (OrderedSum, (2, 1, 0), 0.0), (OrderedSum, (1, 2, 0), 0.0),
        (UnorderedSum, (1, 2, 0), 1.0),
    ):  # fmt: skip
        one = shard(accruing)
        one.begin(1, 5, ())
        for place in order:
            one.accumulate(contribution(5, values[place], place, place=place))
        assert one.close(2, 5, {"only": 1.0}) == [expected]
    waiting = OrderedSum()
    waiting.add(1, ShardSum(jnp.float32(1), {}))
    copied = waiting.copy()
    copied.add(0, ShardSum(jnp.float32(2), {}))
    assert float(copied.total().loss) == 3.0
    with pytest.raises(AssertionError):
        waiting.total()


def test_commands_are_performed_once_and_none_is_left_out():
    one = shard()
    double = (Combine("params", ((2.0, "params"),)), Dots(("params",), ("params",)))
    assert one.perform(1, double) == [8.0]
    assert one.perform(1, double) == [8.0]  # a call that is repeated: the reply of before
    for number in (3, 0):
        text = f"command {number} does not follow the last one that shard/0 knows, 1"
        with pytest.raises(StateLost, match=text):
            one.perform(number, double)
    assert one.perform(2, double) == [32.0]


def test_an_observer_sees_the_end_of_an_iteration_and_no_trial():
    one = shard()
    one.perform(1, (Combine("params", ((3.0, "params"),)),))
    one.finish(2, 0, 10, "memo")
    one.begin(3, 7, (Combine("params", ((5.0, "params"),)),))
    assert np.asarray(one.peek().params["w"]).tolist() == [3.0, 3.0]
    assert (one.peek().version, one.report().version) == (0, 0)
    fetched = one.fetch("replica/0")  # a replica sees the trial
    assert (fetched.version, np.asarray(fetched.params["w"]).tolist()) == (7, [15.0, 15.0])
    assert one.report().counts.bytes_fetched == 8
    assert one.rewind(0, 3) == "memo"
    assert np.asarray(one.fetch("replica/0").params["w"]).tolist() == [3.0, 3.0]


def test_a_copy_is_given_all_and_goes_on_alike():
    one, other = shard(), shard()
    one.begin(1, 5, ())
    one.accumulate(contribution(5, 1.0, 0))
    other.restore(one.state())
    one.accumulate(contribution(5, 9.0, 7))  # the state does not change with it
    other.accumulate(contribution(5, 1.0, 0))
    other.accumulate(contribution(5, 2.0, 1))
    assert other.close(2, 5, {"only": 1.0}) == [3.0]
    assert one.close(2, 5, {"only": 1.0}) == [10.0]
