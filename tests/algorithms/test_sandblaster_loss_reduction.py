"""How the loss depends on the batch: sums are refused, and other losses the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster
from dbjax.algorithms.sandblaster.loss_reduction import require_mean_loss
from dbjax.models import build

# 61 examples in portions of 8: the last one has 5.
X = np.random.default_rng(0).normal(size=(61, 6)).astype(np.float32)
Y = X @ np.arange(6, dtype=np.float32)


def squares(params, batch):
    inputs, labels = batch
    return (inputs @ params["w"] - labels) ** 2


def mean(params, batch):
    return jnp.mean(squares(params, batch))


def total(params, batch):
    return jnp.sum(squares(params, batch))


def penalty(params):
    return jnp.sum(params["w"] ** 2)


def normalised(params, batch):
    outputs = batch[0] @ params["w"]
    outputs = (outputs - outputs.mean()) / jnp.sqrt(outputs.var() + 1e-5)
    return jnp.mean((outputs - batch[1]) ** 2)


def contrastive(params, batch):
    scaled = batch[0] * params["w"]
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(scaled @ scaled.T)))


def masked(params, batch):
    counts = batch[0][:, 0] > 0
    return jnp.sum(counts * squares(params, batch)) / jnp.maximum(counts.sum(), 1)


def balanced(params, batch):  # at zeros its second part has neither a value nor a gradient
    return mean(params, batch) + 0.5 * jnp.mean(batch[0] @ params["w"]) ** 2


def of_eight(params, batch):
    return mean(params, jax.tree.map(lambda x: x.reshape(8, *x.shape[1:]), batch))


MEANS = {
    "mean": mean,
    "with a penalty": lambda p, b: mean(p, b) + 0.1 * penalty(p),
    "with a large one": lambda p, b: mean(p, b) + 1e4 * penalty(p),
    "of the parameters only": lambda p, b: penalty(p),
    "zero": lambda p, b: 0.0 * penalty(p),
    "logarithm": lambda p, b: (
        mean(p, b) + jnp.sum(jnp.log(1e-3 + p["w"]))
    ),  # NaN where w is shifted
}
SUMS = {
    "sum": total,
    "of a share": lambda p, b: total(p, b) / 8,
    "with a penalty": lambda p, b: total(p, b) + 0.1 * penalty(p),
    "of both": lambda p, b: total(p, b) + mean(p, penalty_free(b)),
}
OTHERS = {
    "batch normalisation": normalised,
    "contrastive": contrastive,
    "masked": masked,
    "balanced": balanced,
    "variance": lambda p, b: jnp.var(b[0] @ p["w"]),
    "largest": lambda p, b: jnp.max(squares(p, b)),
    "root of a sum": lambda p, b: jnp.sqrt(total(p, b) + 1e-9),
    "one size only": of_eight,
    "no number": lambda p, b: mean(p, b) * jnp.nan,
}


def penalty_free(batch):
    return jax.tree.map(jnp.zeros_like, batch)


def task(loss, dtype=jnp.float32, batch_size=8):
    return dbjax.Task(
        {"w": jnp.zeros(6, dtype)}, loss, (X.astype(dtype), Y.astype(dtype)), batch_size
    )


@pytest.mark.parametrize("name", MEANS)
def test_means_are_computed_together(name):
    assert require_mean_loss(task(MEANS[name]))


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_mean_is_computed_portion_by_portion(name):
    assert not require_mean_loss(task(OTHERS[name]))


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_refused(name):
    with pytest.raises(ValueError, match=r"Task.loss is a sum .*jnp.mean in place of jnp.sum"):
        require_mean_loss(task(SUMS[name]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_few_digits_are_enough(dtype):
    assert require_mean_loss(task(mean, dtype))
    with pytest.raises(ValueError, match="is a sum"):
        require_mean_loss(task(total, dtype))


def test_networks_have_means():
    network = build("mlp", inputs=6, classes=5, seed=0, l2=1e-3)
    data = X, np.arange(61, dtype=np.int32) % 5
    assert require_mean_loss(dbjax.Task(network.params, network.loss, data, 8))


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_a_run_refuses_a_sum(runtime):
    config = sandblaster.Config(replicas=2, shards=2, steps=3)
    with pytest.raises(ValueError, match="is a sum"):
        dbjax.run(task(total), config, runtime=runtime)
    # One portion is taken as it is; and mini-batches all have one size.
    dbjax.run(task(total, batch_size=61), config, runtime=runtime)
    dbjax.run(task(total), downpour.Config(replicas=2, shards=2, steps=2), runtime=runtime)


@pytest.mark.parametrize("name", ["mean", "normalised", "balanced"])
def test_runtimes_find_the_same(name):
    """Three iterations: before rounding, of sums in another order, decides where a search ends."""
    config = sandblaster.Config(replicas=2, shards=2, steps=3)
    ends = [
        dbjax.run(task(globals()[name]), config, runtime=runtime).params["w"]
        for runtime in ("virtual", "threads")
    ]
    # Some 30 sums of 60 float32 numbers: the values, up to 5, were 2e-6 apart. Taken together
    # what is no mean was more than 0.01 apart.
    np.testing.assert_allclose(*ends, atol=1e-4)
