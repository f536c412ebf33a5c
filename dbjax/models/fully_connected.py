"""Fully connected networks: linear models, softmax regression and multi-layer perceptrons, whole or sharded over devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from dbjax.model_parallel import losses
from dbjax.model_parallel.layers import AXIS, SHARDINGS, Layer, whole
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import functional
from dbjax.models.functional import require_sizes
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


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """`inputs` weights for each of `outputs`, no bias; all zero at first."""

    inputs: int
    outputs: int = 1

    def __post_init__(self) -> None:
        require_sizes("linear", inputs=self.inputs, outputs=self.outputs)

    def module(self, rngs: nnx.Rngs) -> Linear:
        return Linear(self, rngs=rngs)

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        raise ValueError("model 'linear' is not cut over devices: speech, mlp and vision are")


class Linear(nnx.Module):
    """The network of a `LinearConfig`."""

    def __init__(self, config: LinearConfig, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.layer = nnx.Linear(
            config.inputs, config.outputs, use_bias=False, kernel_init=zeros, rngs=rngs
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[batch, outputs] of inputs [batch, inputs]."""
        return self.layer(inputs)


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """Sizes: `inputs`, then ReLU layers of `widths`, then `classes` logits.

    No widths: softmax regression, whose loss is convex.
    """

    inputs: int
    classes: int
    widths: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        hidden = {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        require_sizes("mlp", inputs=self.inputs, classes=self.classes, **hidden)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.inputs, *self.widths, self.classes)

    @property
    def outputs(self) -> int:
        return self.classes

    def module(self, rngs: nnx.Rngs) -> Mlp:
        return Mlp(self, rngs=rngs)

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        return sharding(self, self.sizes, devices, how)


class Mlp(nnx.Module):
    """The network of an `MlpConfig`.

    Initialisation: He et al. 2015 (eq. 10) before a ReLU; zeros before the softmax, so that
    the first loss is log(classes). Biases are zero.
    """

    def __init__(self, config: MlpConfig, *, rngs: nnx.Rngs) -> None:
        he, zeros = nnx.initializers.he_normal(), nnx.initializers.zeros
        self.layers = nnx.List(
            nnx.Linear(n_in, n_out, kernel_init=he if i < len(config.widths) else zeros, rngs=rngs)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(config.sizes))
        )

    def __call__(self, inputs: jax.Array, layer: Layer = whole) -> jax.Array:
        """Logits, [batch, classes], of inputs [batch, inputs]."""
        return forward(self.layers, jax.nn.relu, inputs, layer)
