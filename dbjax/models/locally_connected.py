"""Layers on images [rows, columns, channels, batch], of which each position has its own weights.

Positions come first, so that each is a small matrix product of its own; the batch comes last:
products of a filter and of its gradients are then faster on a CPU.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dbjax.model_parallel.halo import HaloWindow
from dbjax.model_parallel.tiles import Tiles, same

NEIGHBOURHOOD = 5  # positions a side, of pooling and of normalisation
FAINTEST = 0.01  # normalisation does not amplify fainter contrast than this
_POOL = 1e-6  # under the root, whose slope at 0 is infinite


class Filters(nnx.Module):
    """Linear units on every position's patch, with weights of its own.

    Initialisation: variance 1 / (numbers in a patch), so that filtering keeps the scale.
    """

    def __init__(self, side: int, inputs: int, units: int, *, rngs: nnx.Rngs) -> None:
        scale = nnx.initializers.normal(1 / math.sqrt(inputs))
        self.kernel = nnx.Param(scale(rngs.params(), (side, side, inputs, units)))
        self.bias = nnx.Param(jnp.zeros((side, side, units)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[rows, columns, units, batch] of patches [rows, columns, inputs, batch]."""
        by_position = (((2,), (2,)), ((0, 1), (0, 1)))
        return jax.lax.dot_general(self.kernel[...], x, by_position) + self.bias[..., None]


def patches(x: jax.Array, width: int) -> jax.Array:
    """All patches of `width` x `width` in x [rows, columns, channels, batch].

    [rows - width + 1, columns - width + 1, width * width * channels, batch].
    """
    return _shifted(_shifted(x, 1, width), 0, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _shifted(x: jax.Array, axis: int, width: int) -> jax.Array:
    """Copies of x from position 0 on, from 1 on, ..., side by side as channels."""
    length = x.shape[axis] - width + 1
    parts = [jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(width)]
    return jnp.concatenate(parts, axis=2)


def _shifted_forward(x: jax.Array, axis: int, width: int) -> tuple[jax.Array, None]:
    return _shifted(x, axis, width), None


def _shifted_backward(axis: int, width: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Adds what was laid side by side, part i from position i on, in place.

    The chain of padded sums that jax makes of `_shifted` is slower, and XLA has its terms again
    in each slice that is taken of it.
    """
    parts = jnp.split(gradient, width, axis=2)
    length = gradient.shape[axis]
    shape = [n + width - 1 if d == axis else n for d, n in enumerate(parts[0].shape)]
    total = jnp.zeros(shape, gradient.dtype)
    for i, part in enumerate(parts):
        before = jax.lax.slice_in_dim(total, i, i + length, axis=axis)
        total = jax.lax.dynamic_update_slice_in_dim(total, before + part, i, axis)
    return (total,)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def l2_pool(x: jax.Array, reads: HaloWindow) -> jax.Array:
    """The root of the sum of squares of each unit over a neighbourhood, of a window of x."""
    shape = (reads.width, reads.width, 1, 1)
    stride = (reads.stride, reads.stride, 1, 1)
    squares = jax.lax.reduce_window(jnp.square(x), 0.0, jax.lax.add, shape, stride, "VALID")
    return jnp.sqrt(squares + _POOL)


def normalise_contrast(x: jax.Array, side: int, tiles: Tiles) -> jax.Array:
    """Takes off the local mean, and divides by the local deviation where it is not faint.

    Both are over all units and a neighbourhood, weighted by a Gaussian (Jarrett et al. 2009,
    "What is the best multi-stage architecture for object recognition?", section 2.1). What
    travels between tiles are sums over units.
    """
    reads = same(side, NEIGHBOURHOOD)

    def local_mean(values: jax.Array) -> jax.Array:
        return _blurred(tiles.window(jnp.mean(values, axis=2, keepdims=True), reads))

    x = x - local_mean(x)
    return x * jax.lax.rsqrt(jnp.maximum(local_mean(jnp.square(x)), FAINTEST**2))


def _blurred(x: jax.Array) -> jax.Array:
    """A Gaussian mean over the neighbourhood, of a window that reaches beyond the positions."""
    middle = (NEIGHBOURHOOD - 1) / 2
    bell = [math.exp(-0.5 * (i - middle) ** 2) for i in range(NEIGHBOURHOOD)]
    for axis in (0, 1):
        length = x.shape[axis] - NEIGHBOURHOOD + 1
        parts = [
            weight / sum(bell) * jax.lax.slice_in_dim(x, i, i + length, axis=axis)
            for i, weight in enumerate(bell)
        ]
        x = functools.reduce(jnp.add, parts)
    return x
