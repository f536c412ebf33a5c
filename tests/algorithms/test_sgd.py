"""Synchronous SGD: the mean of all gradients, step by step."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import sgd
from tests.references import synchronous_loop

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4)).astype(np.float32)
Y = (X @ RANDOM.normal(size=4)).astype(np.float32)


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


TASK = dbjax.Task({"w": jnp.zeros(4), "b": jnp.zeros(())}, loss, (X, Y), batch_size=4)


@functools.cache
def expected(replicas, steps):
    return synchronous_loop(TASK, 0.1, replicas, steps)


@pytest.mark.parametrize(
    ("replicas", "shards", "runtime"), [(1, 1, "virtual"), (2, 1, "threads"), (3, 2, "virtual")]
)
def test_steps_are_those_of_the_plain_loop(replicas, shards, runtime):
    """Parameters of about 1 after 20 steps, each of which rounds some 1e-7 in float32."""
    config = sgd.Config(optax.sgd(0.1), replicas=replicas, shards=shards, steps=20)
    found = dbjax.run(TASK, config, runtime=runtime).params
    for name, value in expected(replicas, 20).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=20 * 1e-7)
    for wrong in (expected(replicas, 19), expected(replicas % 3 + 1, 20)):
        assert not np.allclose(found["w"], wrong["w"], rtol=0, atol=1e-4)


def test_all_steps_are_of_all_replicas():
    config = sgd.Config(optax.sgd(0.1), replicas=3, shards=2, steps=7)
    cluster = dbjax.Cluster(
        compute_s=0.1, machine=dbjax.Machine(law="exponential"), latency_s=1e-3, seed=1
    )
    summary = dbjax.run(TASK, config, cluster=cluster).summary
    assert (summary["updates"], summary["examples"]) == (7, 7 * 3 * 4)
    assert summary["staleness_updates"]["max"] == 0
    calm = dbjax.run(TASK, config).summary
    assert summary["params_sha256"] == calm["params_sha256"]  # whoever is first
