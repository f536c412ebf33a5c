"""Filters, pooling and normalisation of the vision network beside plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.model_parallel.tiles import WHOLE, same, valid
from dbjax.models import locally_connected
from dbjax.models.locally_connected import FAINTEST, l2_pool, normalise_contrast, patches
from dbjax.models.vision import VisionConfig
from tests import references

RANDOM = np.random.default_rng(0)


def images(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def positions_first(x):
    return jnp.transpose(x, (1, 2, 3, 0))


def close(found, expected, tolerance=3e-6):
    """float32 rounds by 6e-8: sums of some 27 products of up to 5 are right to about 2e-6."""
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def filters(kernel, bias):
    module = VisionConfig(image=8, classes=2, units=5, patch=3, last_pool=2).module
    stage = jax.eval_shape(module, locally_connected.nnx.Rngs(0)).stages[0]
    stage.kernel, stage.bias = (
        locally_connected.nnx.Param(kernel),
        locally_connected.nnx.Param(bias),
    )
    return stage


def test_filters_are_as_a_loop():
    x, kernel, bias = images(2, 6, 6, 3), images(4, 4, 27, 5), images(4, 4, 5)
    found = filters(kernel, bias)(patches(positions_first(x), 3))
    expected = references.locally_connected(x, kernel, bias, 3)
    close(found, positions_first(expected))
    with pytest.raises(AssertionError):
        close(found, positions_first(expected[:, :, ::-1]))


@pytest.mark.parametrize(("side", "width"), [(6, 3), (5, 5), (4, 1), (9, 2)])
def test_the_gradient_of_patches_is_that_of_slices(side, width):
    """It is written out (`locally_connected._shifted_backward`); rows and columns differ."""
    x = images(side, side + 1, 3, 2)
    places = list(np.ndindex(width, width))

    def plain(x):
        rows, columns = side - width + 1, side - width + 2
        return jnp.concatenate([x[i : i + rows, j : j + columns] for i, j in places], axis=2)

    def value_and_gradient(fn):
        value, back = jax.vjp(fn, x)
        return value, back(value**2)[0]

    expected, gradient = jax.jit(value_and_gradient, static_argnums=0)(plain)
    found, written_out = jax.jit(value_and_gradient, static_argnums=0)(lambda x: patches(x, width))
    assert np.array_equal(found, expected)
    close(written_out, gradient, 1e-6)  # sums of at most 25, one after another


@pytest.mark.parametrize(
    ("reads", "before"),
    [(valid(7, 3), 0), (valid(7, 3, 2), 0), (valid(8, 3, 3), 0), (same(7, 5), 2)],
)
def test_pooling_is_as_a_loop(reads, before):
    x = images(2, reads.inputs, reads.inputs, 3)
    found = l2_pool(WHOLE.window(positions_first(x), reads), reads)
    expected = references.l2_pooled(x, reads.width, reads.stride, before)
    assert found.shape[:2] == (reads.outputs, reads.outputs)
    close(found, positions_first(expected))


def test_contrast_normalisation_is_as_a_loop():
    x = images(2, 7, 7, 3)
    x[1] *= 1e-3  # fainter than what is amplified
    found = normalise_contrast(positions_first(x), 7, WHOLE)
    expected = references.contrast_normalised(x, FAINTEST)
    close(found, positions_first(expected))
    assert np.std(expected[1]) < 0.2 < np.std(expected[0])
    with pytest.raises(AssertionError):
        close(found, positions_first(references.contrast_normalised(x, 0)))
