"""The locally connected vision network of section 5.

Three stages of filtering, pooling and local contrast normalisation; weights of the filters are
not shared between positions. Then one logistic unit for each class, against all others.

The paper gives image and patch size, the number of units on a patch (8 to 36) and the sizes
of three networks; the rest is ours. With stride 1 and patches inside the image the stages have
91, 82 and 73 positions a side; the last one is pooled to 8. The numbers of parameters are then

  units   parameters       reported
  36      1,700,640,624    1.7 billion
  15      328,943,010      330 million
  7       86,021,138       80 million

Filters are linear, and are pooled by the square root of the sum of squares, as in the network
of the same authors (Le et al. 2012, "Building high-level features using large scale
unsupervised learning"), which also has their local contrast normalisation.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from dbjax.models import functional
from dbjax.models.functional import require_sizes
from dbjax.parallel import losses
from dbjax.parallel.cut import Cut
from dbjax.parallel.halo import Reads
from dbjax.parallel.tiles import COLUMN, ROW, WHOLE, Tiles, grid, same, valid
from dbjax.types import Batch, Params

NEIGHBOURHOOD = 5  # positions a side, of pooling and of normalisation
_CONTRAST = 0.01  # normalisation does not amplify fainter contrast than this
_POOL = 1e-6  # under the root, whose slope at 0 is infinite


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes; the paper's networks are `VisionConfig(units=36)`, 15 and 7.

    Attributes:
      image: pixels a side.
      classes: logistic output units.
      units: on every patch, the paper's 8 to 36.
      channels: of a pixel.
      patch: positions a side that a filter sees.
      last_pool: positions a side, and the distance, of the last stage's pooling.
    """

    image: int = 100
    classes: int = 21_000
    units: int = 36
    channels: int = 3
    patch: int = 10
    last_pool: int = 9

    def __post_init__(self) -> None:
        require_sizes("vision", **dataclasses.asdict(self))
        smallest = STAGES * (self.patch - 1) + self.last_pool
        if self.image < smallest:
            raise ValueError(
                f"vision: images of {self.image} pixels a side are too small for {STAGES} stages "
                f"of patch={self.patch} and last_pool={self.last_pool}: at least {smallest}"
            )

    @property
    def inputs(self) -> int:
        """Numbers in an image."""
        return self.image**2 * self.channels

    @property
    def filters(self) -> tuple[Reads, ...]:
        """What each stage's filters read."""
        sides = [self.image - i * (self.patch - 1) for i in range(STAGES)]
        return tuple(valid(side, self.patch) for side in sides)

    @property
    def pools(self) -> tuple[Reads, ...]:
        """What each stage's pooling reads."""
        *stages, last = [filters.outputs for filters in self.filters]
        return (
            *(same(side, NEIGHBOURHOOD) for side in stages),
            valid(last, self.last_pool, self.last_pool),
        )

    def module(self, rngs: nnx.Rngs) -> Vision:
        return Vision(self, rngs=rngs)

    def cut(self, devices: int, how: str | None = None) -> Cut:
        """Tiles in space; the output layer by classes."""
        if how not in (None, "tiles"):
            raise ValueError(f"no way {how!r} to cut model 'vision'; nearest: 'tiles'")
        tiles = grid(devices)

        def loss(params: Params, batch: Batch) -> jax.Array:
            inputs, labels = batch
            logits = functional.applied_to_blocks(self, params, inputs, tiles)
            return losses.one_against_all(logits, labels, self.classes, (ROW, COLUMN))

        return Cut(tiles.axes, _RULES, loss)


STAGES = 3
_RULES = (
    (r"stages/\d+/(kernel|bias)", PartitionSpec(ROW, COLUMN)),
    (r"output/kernel", PartitionSpec(None, (ROW, COLUMN))),
    (r"output/bias", PartitionSpec((ROW, COLUMN))),
)


class Vision(nnx.Module):
    """The network of a `VisionConfig`."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        channels = [config.channels, *[config.units] * STAGES]
        self.stages = nnx.List(
            Filters(filters.outputs, config.patch**2 * n_in, config.units, rngs=rngs)
            for filters, n_in in zip(config.filters, channels, strict=False)
        )
        features = config.pools[-1].outputs ** 2 * config.units
        self.output = nnx.Linear(
            features,
            config.classes,
            kernel_init=nnx.initializers.zeros,
            # at first every class has the probability that it has among equally many
            bias_init=nnx.initializers.constant(-math.log(max(1, config.classes - 1))),
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array, tiles: Tiles = WHOLE) -> jax.Array:
        """Logits, [batch, classes], of inputs [batch, image * image * channels].

        With `tiles` of several devices: this device's block of the classes.
        """
        config = self.config
        images = inputs.reshape(-1, config.image, config.image, config.channels)
        # Positions first, since each has weights of its own; the batch last: products of a
        # filter and of its gradients are then 3 times as fast on a CPU.
        x = jnp.transpose(images, (1, 2, 3, 0))
        window = tiles.window_of_image
        for stage, filters, pool in zip(self.stages, config.filters, config.pools, strict=True):
            x = stage(patches(window(x, filters), config.patch))
            x = l2_pool(tiles.window(x, pool), pool)
            x = normalise_contrast(x, pool.outputs, tiles)
            window = tiles.window
        features = tiles.gathered(x, config.pools[-1].outputs)
        return self.output(jnp.transpose(features, (3, 0, 1, 2)).reshape(len(inputs), -1))


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

    The chain of padded sums that jax makes of `_shifted` takes 5 times as long, and XLA computes
    its terms again for each slice that is taken of it.
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


def l2_pool(x: jax.Array, reads: Reads) -> jax.Array:
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
    return x * jax.lax.rsqrt(jnp.maximum(local_mean(jnp.square(x)), _CONTRAST**2))


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
