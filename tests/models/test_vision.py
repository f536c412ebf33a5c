"""The locally connected network: its size, its loss, and all of it beside plain loops."""

import math

import jax
import numpy as np
import pytest

from dbjax.models import build, vision
from dbjax.models.functional import init
from dbjax.models.locally_connected import FAINTEST
from dbjax.models.vision import VisionConfig
from tests import references

RANDOM = np.random.default_rng(0)
TINY = {"inputs": 64, "classes": 10, "units": 4, "channels": 1, "patch": 3, "last_pool": 2}
NETWORK = build("vision", seed=0, **TINY)


@jax.jit
def evaluated(params, batch):
    return (
        NETWORK.apply(params, batch[0]),
        NETWORK.loss(params, batch),
        NETWORK.correct(params, batch),
    )


def images(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def batch():
    return images(8, 64), RANDOM.integers(10, size=8).astype(np.int32)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def by_hand(units):
    """Parameters of the paper's network: 91, 82 and 73 positions a side, 8 of the pooled ones."""
    first = 91**2 * (10 * 10 * 3 + 1) * units
    others = (82**2 + 73**2) * (10 * 10 * units + 1) * units
    return first + others + (8 * 8 * units + 1) * 21_000


@pytest.mark.parametrize("units", [36, 15, 7])
def test_the_papers_networks_have_their_numbers_of_parameters(units):
    shapes = jax.eval_shape(lambda: init(VisionConfig(units=units), 0))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert size == by_hand(units)
    assert f"{units:<7} {size:,} " in vision.__doc__


def test_the_whole_network_is_as_loops():
    params = jax.tree.map(lambda p: p + 0.1 * images(*p.shape), NETWORK.params)
    x, labels = batch()
    found, loss, correct = evaluated(params, (x, labels))
    h = x.reshape(8, 8, 8, 1)
    for i, pool in enumerate([(5, 1, 2), (5, 1, 2), (2, 2)]):
        stage = params["stages"][str(i)]
        h = references.locally_connected(h, np.array(stage["kernel"]), np.array(stage["bias"]), 3)
        h = references.contrast_normalised(references.l2_pooled(h, *pool), FAINTEST)
    kernel, bias = (np.array(params["output"][name]) for name in ("kernel", "bias"))
    logits = h.reshape(8, -1) @ kernel + bias
    # three stages of sums of up to 36 products in float32, each brought to size 1 again
    close(found, logits, 3e-6)
    assert float(loss) == pytest.approx(references.one_against_all(logits, labels), rel=3e-6)
    assert int(correct) == np.sum(np.argmax(logits, axis=-1) == labels)


def test_filters_start_with_the_scale_of_their_inputs():
    stages = NETWORK.params["stages"].values()
    for stage, inputs in zip(stages, (9, 36, 36), strict=True):
        assert np.std(stage["kernel"]) == pytest.approx(1 / math.sqrt(inputs), rel=0.1)
        assert not np.any(stage["bias"])


def test_at_first_every_class_is_as_probable_as_any_other():
    x, labels = batch()
    logits, loss, _ = evaluated(NETWORK.params, (x, labels))
    close(jax.nn.sigmoid(logits), np.full((8, 10), 0.1), 1e-7)  # two roundings of 6e-8
    expected = math.log(10) - 9 * math.log(0.9)
    assert float(loss) == pytest.approx(expected, rel=1e-6)  # a sum of ten
    assert references.one_against_all(np.asarray(logits), labels) == pytest.approx(expected)


def test_a_few_steps_reduce_the_loss():
    x, _ = batch()
    data = 0.5 * x + 2 * images(4, 64)[np.arange(8) % 4], np.arange(8) % 4  # a picture for a class
    step, params, losses = jax.jit(jax.value_and_grad(NETWORK.loss)), NETWORK.params, []
    for _ in range(40):
        value, gradient = step(params, data)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert step._cache_size() == 1
    assert int(evaluated(params, data)[2]) >= 6


def test_mistakes_are_named():
    for call, text in (
        (lambda: VisionConfig(image=35), "images of 35 pixels a side are too small for 3 stages of "
         "patch=10 and last_pool=9; use at least 36"),
        (lambda: VisionConfig(units=0), "vision.units=0 must be an integer of at least 1"),
        (lambda: build("vision", seed=0, **TINY | {"inputs": 65}),
         r"inputs=65 is not side \* side \* channels for any side with channels=1"),
        (lambda: build("vision", seed=0, **TINY | {"inputs": 3 * 64, "channels": 2}),
         r"inputs=192 is not side \* side \* channels for any side with channels=2"),
        (lambda: build("vision", seed=0, **TINY | {"channels": 0}), "vision.channels=0"),
        (lambda: build("vision", seed=0, **TINY | {"chanels": 1}), "nearest: 'channels'"),
        (lambda: NETWORK.sharding(4, "tile"),
         "how='tile' does not apply to model 'vision'; use 'tiles'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call()


def test_the_smallest_image_works():
    config = VisionConfig(image=36, units=1, classes=2)
    assert config.pools[-1].outputs == 1
