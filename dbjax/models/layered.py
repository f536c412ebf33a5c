"""Networks of fully connected layers, whole or cut over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from dbjax.model_parallel import losses
from dbjax.model_parallel.layers import AXIS, SHARDINGS, Layer
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import functional
from dbjax.types import Batch, Params


def forward(
    layers: Sequence[Any],
    activation: Callable[[jax.Array], jax.Array],
    inputs: jax.Array,
    layer: Layer,
) -> jax.Array:
    """Logits, [batch, classes]; of a network that is cut, the device's block of them."""
    last = len(layers) - 1
    for i in range(last):
        inputs = activation(layer(i, layers[i], inputs))
    return layer(last, layers[last], inputs)


def sharding(
    config: functional.Config, sizes: tuple[int, ...], devices: int, how: str | None
) -> ModelSharding:
    """A classifier of these sizes (inputs, units of each layer) with its loss, cut.

    Raises:
      ValueError: no such way of cutting.
    """
    how = how or "units"
    if how not in SHARDINGS:
        raise ValueError(f"no way {how!r} to cut fully connected layers: {' or '.join(SHARDINGS)}")
    layer = SHARDINGS[how](sizes)

    def loss(params: Params, batch: Batch) -> jax.Array:
        inputs, labels = batch
        logits = functional.applied_to_blocks(config, params, inputs, layer)
        if not layer.logits_are_sharded:
            return functional.cross_entropy(logits, labels)
        return losses.cross_entropy(logits, labels, sizes[-1], (AXIS,))

    return ModelSharding(((AXIS, devices),), layer.rules, loss)
