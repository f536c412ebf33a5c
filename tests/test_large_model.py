"""What trains a network that fits into memory three times, and not four."""

import dataclasses
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from benchmarks.large_model import train
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.models import VisionConfig, functional
from dbjax.runtime.trace import Trace

SMALL = VisionConfig(image=24, classes=50, units=3, patch=4, last_pool=5)
X = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)


def start():
    return {"w": jnp.ones(1000)}


def loss(params, batch):
    return jnp.mean((batch @ params["w"]) ** 2)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_the_loss_falls_in_three_steps(shards):
    trained = train(SMALL, steps=3, batch_size=4, shards=shards)
    assert len(trained.losses) == len(trained.step_s) == 3
    assert all(after < before for before, after in itertools.pairwise(trained.losses))
    assert trained.bytes_fetched == trained.bytes_pushed == 3 * 4 * trained.parameters
    assert all(took_s > 0 for took_s in trained.parts_s.values())


@pytest.mark.parametrize("config", [
    downpour.Config(optax.sgd(1e-4), replicas=2, shards=2, steps=3),
    sgd.Config(optax.sgd(1e-4), replicas=2, shards=2, steps=3),
    sandblaster.Config(replicas=2, shards=2, steps=3),
], ids=["downpour", "sgd", "sandblaster"])  # fmt: skip
def test_initial_parameters_may_be_a_function(config):
    kept, made = (dbjax.run(dbjax.Task(p, loss, X), config) for p in (start(), start))
    assert kept.summary["params_sha256"] == made.summary["params_sha256"]
    assert not jnp.array_equal(made.params["w"], start()["w"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    w: jax.Array

    def __call__(self, x):
        return x @ self.w


def test_a_pytree_that_can_be_called_is_no_function():
    task = dbjax.Task(Linear(jnp.ones(1000)), lambda p, x: jnp.mean(p(x) ** 2), X)
    result = dbjax.run(task, downpour.Config(optax.sgd(1e-4), replicas=1, steps=2))
    assert isinstance(result.params, Linear)


def test_leaf_by_leaf_the_initial_parameters_are_the_same(monkeypatch):
    together = functional.init(SMALL, 3)
    monkeypatch.setattr(functional, "_LARGE_BYTES", 0)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, functional.init(SMALL, 3), together))


def held_bytes(n_fetch):
    """Of all arrays, each time that the replica has pushed; and of the parameters."""
    size = 100_000
    found = []

    def listen(row):
        if threading.current_thread().name == "replica/0":
            found.append(sum(x.nbytes for x in jax.live_arrays() if x.size > 10_000) - before)

    before = sum(x.nbytes for x in jax.live_arrays() if x.size > 10_000)
    task = dbjax.Task(lambda: {"w": jnp.ones(size)}, lambda p, x: jnp.mean(x) * p["w"].sum(), X)
    config = downpour.Config(replicas=1, shards=4, steps=6, n_fetch=n_fetch)
    dbjax.run(task, config, runtime="threads", trace=Trace(100, listeners=[listen]))
    return np.array(found[1:]) / (4 * size)


def test_a_replica_keeps_no_parameters_that_it_will_replace():
    # At some pushes a thread of a shard still has the last gradient, and makes its new parameters.
    replaced, kept = held_bytes(n_fetch=1).min(), held_bytes(n_fetch=2).max()
    assert replaced < 1.1  # the shards' own
    assert kept > replaced + 0.9  # between fetches a replica steps on parameters of its own
