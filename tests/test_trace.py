"""What a run leaves in memory."""

import jax
import jax.numpy as jnp

from dbjax.runtime.trace import Trace


def test_scalars_of_long_ago_are_plain_numbers_and_the_latest_may_still_be_computed():
    trace = Trace()
    for step in range(1_000):
        trace.record("replica/0", 0.5 * step, {"step": step, "loss": jnp.float32(step) / 3})
    kinds = [isinstance(row["loss"], jax.Array) for row in trace.rows]
    assert kinds[:500] == [False] * 500
    assert kinds[-1]
    assert [float(row["loss"]) for row in trace.rows] == [
        float(jnp.float32(step) / 3) for step in range(1_000)
    ]
