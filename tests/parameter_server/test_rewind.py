"""A shard that goes back to an earlier iteration knows each iteration once."""

import jax.numpy as jnp

from dbjax.parameter_server.gradient_sums import UnorderedSum
from dbjax.parameter_server.vector_shard import BEGINNING, VectorShard
from dbjax.runtime import VirtualRuntime


def test_iterations_that_are_done_anew_replace_those_of_before():
    handle = VirtualRuntime().serve("shard/0", VectorShard, {"w": jnp.ones(3)}, UnorderedSum)
    shard, number = handle.service, 0
    for iteration in (0, 1, 2):
        number += 1
        shard.finish(number, iteration, 10, None)
    shard.checkpoint()
    number += 1
    shard.finish(number, 3, 10, None)
    assert shard.standing()[0] == [BEGINNING, 1, 2, 3]
    shard.rewind(1, number)
    for iteration in (2, 3):
        number += 1
        shard.finish(number, iteration, 10, None)
        iterations = shard.standing()[0]
        assert len(set(iterations)) == len(iterations)
        assert iterations[-1] == iteration
    assert iterations == [BEGINNING, 1, 2, 3]
