"""The locally connected vision network of section 5.

The network has three stages of filtering, pooling and local contrast normalisation, followed by
one logistic unit for each class, which is trained against all other classes. The weights of the
filters are not shared between positions.

The paper gives the sizes of images and patches, the number of units on a patch (8 to 36) and the
numbers of parameters of three networks. The remaining choices are this implementation's. With
stride 1 and patches inside the image, the stages have 91, 82 and 73 positions per side, and the
last stage is pooled to 8. The numbers of parameters are then

  units   parameters       reported
  36      1,700,640,624    1.7 billion
  15      328,943,010      330 million
  7       86,021,138       80 million

Paper: section 5. Differs from the paper: see docs/algorithm.md, "Vision network".

Filters are linear and are pooled by the square root of the sum of squares, as in the network of Le
et al. 2012, "Building high-level features using large scale unsupervised learning", by the same
authors. The local contrast normalisation is also that network's.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from dbjax.model_parallel import losses
from dbjax.model_parallel.halo import HaloWindow
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.model_parallel.tiles import COLUMN, ROW, WHOLE, Tiles, grid, same, valid
from dbjax.models import functional
from dbjax.models.functional import require_sizes
from dbjax.models.locally_connected import (
    NEIGHBOURHOOD,
    Filters,
    l2_pool,
    normalise_contrast,
    patches,
)
from dbjax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The sizes of a vision network.

    Paper: section 5. The paper's three networks are `VisionConfig(units=36)`, `units=15` and
    `units=7`.

    Attributes:
      image: the number of pixels per side of an image.
      classes: the number of logistic output units.
      units: the number of units on each patch (8 to 36 in the paper).
      channels: the number of channels of a pixel.
      patch: the number of positions per side of a filter's patch.
      last_pool: the number of positions per side, and the stride, of the last stage's pooling.

    Raises:
      ValueError: a size is not an integer of at least 1, or the image is too small for the stages.
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
                f"of patch={self.patch} and last_pool={self.last_pool}; use at least {smallest}"
            )

    @property
    def inputs(self) -> int:
        """The numbers in an image."""
        return self.image**2 * self.channels

    @property
    def filters(self) -> tuple[HaloWindow, ...]:
        """The positions that each stage's filters read."""
        sides = [self.image - i * (self.patch - 1) for i in range(STAGES)]
        return tuple(valid(side, self.patch) for side in sides)

    @property
    def pools(self) -> tuple[HaloWindow, ...]:
        """The positions that each stage's pooling reads."""
        *stages, last = [filters.outputs for filters in self.filters]
        return (
            *(same(side, NEIGHBOURHOOD) for side in stages),
            valid(last, self.last_pool, self.last_pool),
        )

    @property
    def outputs(self) -> int:
        return self.classes

    def module(self, rngs: nnx.Rngs) -> Vision:
        return Vision(self, rngs=rngs)

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        """Shards the stages by tiles in space, and the output layer by classes.

        Args:
          devices: the number of devices.
          how: "tiles" or None.

        Raises:
          ValueError: `how` is something else, or `devices` is below 1.
        """
        if how not in (None, "tiles"):
            raise ValueError(f"how={how!r} does not apply to model 'vision'; use 'tiles'")
        tiles = grid(devices)

        def loss(params: Params, batch: Batch) -> jax.Array:
            inputs, labels = batch
            logits = functional.applied_to_blocks(self, params, inputs, tiles)
            return losses.one_against_all(logits, labels, self.classes, (ROW, COLUMN))

        return ModelSharding(tiles.axes, _RULES, loss)


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
            # With this bias the initial probability of every class is 1 / classes.
            bias_init=nnx.initializers.constant(-math.log(max(1, config.classes - 1))),
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array, tiles: Tiles = WHOLE) -> jax.Array:
        """Returns logits [batch, classes] for inputs [batch, image * image * channels].

        If `tiles` has several devices, it returns this device's block of the classes.
        """
        config = self.config
        images = inputs.reshape(-1, config.image, config.image, config.channels)
        x = jnp.transpose(images, (1, 2, 3, 0))
        window = tiles.window_of_image
        for stage, filters, pool in zip(self.stages, config.filters, config.pools, strict=True):
            x = stage(patches(window(x, filters), config.patch))
            x = l2_pool(tiles.window(x, pool), pool)
            x = normalise_contrast(x, pool.outputs, tiles)
            window = tiles.window
        features = tiles.gathered(x, config.pools[-1].outputs)
        return self.output(jnp.transpose(features, (3, 0, 1, 2)).reshape(len(inputs), -1))
