"""Locally connected layers on images [rows, columns, channels, batch].

Each position has its own weights. Positions are the first dimensions, so that each position is a
separate small matrix product. The batch is the last dimension, because the products of filters and
of their gradients are then faster on a CPU.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dbjax.model_parallel.halo import HaloWindow
from dbjax.model_parallel.tiles import Tiles, same

NEIGHBOURHOOD = 5  # positions per side, for pooling and normalisation
FAINTEST = 0.01  # a local deviation below this is not amplified further by normalisation
_POOL = 1e-6  # added under the root, whose slope at 0 is infinite


class Filters(nnx.Module):
    """Linear units on the patch of every position, with separate weights for each position.

    Weights are initialised with variance 1 / (numbers in a patch), so that filtering preserves the
    scale of its inputs. Biases are zero.

    Args:
      side: the number of positions per side.
      inputs: the numbers in a patch.
      units: the number of units at each position.
      rngs: the source of random keys.
    """

    def __init__(self, side: int, inputs: int, units: int, *, rngs: nnx.Rngs) -> None:
        scale = nnx.initializers.normal(1 / math.sqrt(inputs))
        self.kernel = nnx.Param(scale(rngs.params(), (side, side, inputs, units)))
        self.bias = nnx.Param(jnp.zeros((side, side, units)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps patches [rows, columns, inputs, batch] to [rows, columns, units, batch]."""
        by_position = (((2,), (2,)), ((0, 1), (0, 1)))
        return jax.lax.dot_general(self.kernel[...], x, by_position) + self.bias[..., None]


def patches(x: jax.Array, width: int) -> jax.Array:
    """Extracts all patches of `width` x `width` positions.

    Args:
      x: [rows, columns, channels, batch].
      width: the number of positions per side of a patch.

    Returns:
      The patches, [rows - width + 1, columns - width + 1, width * width * channels, batch].
    """
    return _shifted(_shifted(x, 1, width), 0, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _shifted(x: jax.Array, axis: int, width: int) -> jax.Array:
    """Concatenates, as channels, `width` copies of x that start at positions 0, 1, and so on."""
    length = x.shape[axis] - width + 1
    parts = [jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(width)]
    return jnp.concatenate(parts, axis=2)


def _shifted_forward(x: jax.Array, axis: int, width: int) -> tuple[jax.Array, None]:
    return _shifted(x, axis, width), None


def _shifted_backward(axis: int, width: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Adds part i of the gradient, in place, from position i.

    The chain of padded sums that JAX derives from `_shifted` is slower, because XLA recomputes its
    terms in each slice that is taken of it.
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
    """Pools each unit by the square root of its sum of squares over a neighbourhood.

    Args:
      x: the window that the pooling reads, [rows, columns, units, batch].
      reads: the positions that each output position reads, along either dimension.
    """
    shape = (reads.width, reads.width, 1, 1)
    stride = (reads.stride, reads.stride, 1, 1)
    squares = jax.lax.reduce_window(jnp.square(x), 0.0, jax.lax.add, shape, stride, "VALID")
    return jnp.sqrt(squares + _POOL)


def normalise_contrast(x: jax.Array, side: int, tiles: Tiles) -> jax.Array:
    """Subtracts the local mean, and divides by the local standard deviation.

    A deviation below `FAINTEST` is replaced by `FAINTEST`. Mean and deviation are taken over all
    units and over a neighbourhood weighted by a Gaussian (Jarrett et al. 2009, "What is the best
    multi-stage architecture for object recognition?", section 2.1). Only means over units are
    exchanged between tiles.

    Args:
      x: this device's tile, [rows, columns, units, batch].
      side: the number of positions per side of the whole array.
      tiles: the grid of devices.
    """
    reads = same(side, NEIGHBOURHOOD)

    def local_mean(values: jax.Array) -> jax.Array:
        return _blurred(tiles.window(jnp.mean(values, axis=2, keepdims=True), reads))

    x = x - local_mean(x)
    return x * jax.lax.rsqrt(jnp.maximum(local_mean(jnp.square(x)), FAINTEST**2))


def _blurred(x: jax.Array) -> jax.Array:
    """Returns the Gaussian mean over the neighbourhood of each position inside the window x."""
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
