"""Fully connected layers cut over devices: the paper's cut, and one that alternates.

Paper: section 3 and Figure 1.

Each is a callable (index of the layer, layer, inputs) -> outputs before the activation, on a
device's blocks of the parameters, under `jax.shard_map`. The first layer's inputs are whole.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dbjax.model_parallel.sharding import Rules

AXIS = "unit"


class Layer(Protocol):
    """How a layer is computed; see the module."""

    def __call__(self, index: int, layer: Any, inputs: jax.Array) -> jax.Array: ...


def whole(index: int, layer: Any, inputs: jax.Array) -> jax.Array:
    """The layer as it is, on one device."""
    del index
    outputs: jax.Array = layer(inputs)
    return outputs


def _own_units(layer: Any, inputs: jax.Array) -> jax.Array:
    """Of a layer cut by its outputs: those that this device has."""
    outputs: jax.Array = jnp.dot(inputs, layer.kernel[...]) + layer.bias[...][None]
    return outputs


@dataclasses.dataclass(frozen=True)
class Units:
    """Every layer's units are cut, as in the paper's Figure 1.

    Before each layer but the first a device gets the units of all others (an all-gather); on
    the way back it sums what they have for its own (a reduce-scatter).

    Attributes:
      sizes: inputs of the first layer, then units of each.
    """

    sizes: tuple[int, ...]
    rules: ClassVar[Rules] = (
        (r"layers/\d+/kernel", PartitionSpec(None, AXIS)),
        (r"layers/\d+/bias", PartitionSpec(AXIS)),
    )
    logits_are_sharded: ClassVar[bool] = True

    def __call__(self, index: int, layer: Any, inputs: jax.Array) -> jax.Array:
        if index:
            gathered = jax.lax.all_gather(inputs, AXIS, axis=-1, tiled=True)
            inputs = gathered[..., : self.sizes[index]]  # without the padding
        return _own_units(layer, inputs)


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Even layers are cut by their outputs, odd ones by their inputs: half the collectives.

    An odd layer needs no units of others, and its outputs are the sums of what all devices
    have (an all-reduce); so are the gradients at the inputs of even layers, on the way back.
    (Shoeybi et al. 2019, "Megatron-LM", section 3.) Each all-reduce moves as much as an
    all-gather and a reduce-scatter.

    Attributes:
      sizes: inputs of the first layer, then units of each.
    """

    sizes: tuple[int, ...]
    rules: ClassVar[Rules] = (
        (r"layers/\d*[02468]/kernel", PartitionSpec(None, AXIS)),
        (r"layers/\d+/kernel", PartitionSpec(AXIS, None)),
        (r"layers/\d+/bias", PartitionSpec(AXIS)),
    )

    @property
    def logits_are_sharded(self) -> bool:
        return len(self.sizes) % 2 == 0

    def __call__(self, index: int, layer: Any, inputs: jax.Array) -> jax.Array:
        if index % 2 == 0:
            return _own_units(layer, inputs)
        place = jax.lax.axis_index(AXIS)
        units = place * inputs.shape[-1] + jnp.arange(inputs.shape[-1])
        inputs = jnp.where(units < self.sizes[index], inputs, 0)  # padding has no gradient
        partial = jnp.dot(inputs, layer.kernel[...])
        bias = layer.bias[...]
        padded = jnp.zeros(len(bias) * jax.lax.axis_size(AXIS), bias.dtype)
        padded = jax.lax.dynamic_update_slice_in_dim(padded, bias, place * len(bias), 0)
        summed: jax.Array = jax.lax.psum(partial + padded[None, : partial.shape[-1]], AXIS)
        return summed


SHARDINGS: dict[str, type[Units] | type[Alternating]] = {"units": Units, "alternating": Alternating}
