"""Two ways to shard fully connected layers over devices: by units, and alternating.

Paper: section 3 and Figure 1 shard by units.

Each sharding is a callable (index of the layer, layer, inputs) -> outputs before the activation.
It runs under `jax.shard_map` on one device's blocks of the parameters. The inputs of the first
layer are not sharded.
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
    """A function that computes a layer; see the module docstring."""

    def __call__(self, index: int, layer: Any, inputs: jax.Array) -> jax.Array: ...


def whole(index: int, layer: Any, inputs: jax.Array) -> jax.Array:
    """Computes a layer that is not sharded."""
    del index
    outputs: jax.Array = layer(inputs)
    return outputs


def _own_units(layer: Any, inputs: jax.Array) -> jax.Array:
    """Computes this device's outputs of a layer that is sharded by its outputs."""
    outputs: jax.Array = jnp.dot(inputs, layer.kernel[...]) + layer.bias[...][None]
    return outputs


@dataclasses.dataclass(frozen=True)
class Units:
    """Shards every layer by its units, as in the paper's Figure 1.

    Before each layer but the first, a device receives the units of all other devices (an
    all-gather). In the backward pass, it sums the gradients that the other devices have for its
    own units (a reduce-scatter).

    Attributes:
      sizes: the number of inputs of the first layer, then the number of units of each layer.
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
    """Shards even layers by their outputs and odd layers by their inputs.

    This needs half as many collectives as `Units`. An odd layer does not need the units of other
    devices, and its outputs are sums over all devices (an all-reduce). In the backward pass, the
    gradients at the inputs of even layers are sums over all devices (also an all-reduce). Each
    all-reduce moves as many bytes as an all-gather and a reduce-scatter together. See Shoeybi et
    al. 2019, "Megatron-LM", section 3.

    Attributes:
      sizes: the number of inputs of the first layer, then the number of units of each layer.
    """

    sizes: tuple[int, ...]
    rules: ClassVar[Rules] = (
        (r"layers/\d*[02468]/kernel", PartitionSpec(None, AXIS)),
        (r"layers/\d+/kernel", PartitionSpec(AXIS, None)),
        (r"layers/\d+/bias", PartitionSpec(AXIS)),
    )

    @property
    def logits_are_sharded(self) -> bool:
        """Whether the last layer is an even one, whose outputs are sharded."""
        return len(self.sizes) % 2 == 0

    def __call__(self, index: int, layer: Any, inputs: jax.Array) -> jax.Array:
        if index % 2 == 0:
            return _own_units(layer, inputs)
        place = jax.lax.axis_index(AXIS)
        units = place * inputs.shape[-1] + jnp.arange(inputs.shape[-1])
        inputs = jnp.where(units < self.sizes[index], inputs, 0)  # so that padding has gradient 0
        partial = jnp.dot(inputs, layer.kernel[...])
        bias = layer.bias[...]
        padded = jnp.zeros(len(bias) * jax.lax.axis_size(AXIS), bias.dtype)
        padded = jax.lax.dynamic_update_slice_in_dim(padded, bias, place * len(bias), 0)
        summed: jax.Array = jax.lax.psum(partial + padded[None, : partial.shape[-1]], AXIS)
        return summed


SHARDINGS: dict[str, type[Units] | type[Alternating]] = {"units": Units, "alternating": Alternating}
