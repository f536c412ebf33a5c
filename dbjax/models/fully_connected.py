"""Fully connected networks: linear models, softmax regression and multi-layer perceptrons.

Networks other than linear models can be sharded over devices.
"""

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
    """Computes the logits of a stack of layers.

    Args:
      layers: the parameters of each layer.
      activation: the function applied after every layer but the last.
      inputs: [batch, inputs].
      layer: the function that computes one layer.

    Returns:
      The logits, [batch, classes], or this device's block of them if the network is sharded.
    """
    last = len(layers) - 1
    for i in range(last):
        inputs = activation(layer(i, layers[i], inputs))
    return layer(last, layers[last], inputs)


def sharding(
    config: functional.Config, sizes: tuple[int, ...], devices: int, how: str | None
) -> ModelSharding:
    """Returns the sharding of a fully connected classifier, with its loss.

    Args:
      config: the network.
      sizes: the number of inputs, then the number of units of each layer.
      devices: the number of devices.
      how: "units" (the paper's), "alternating", or None for the paper's; see
        `dbjax.model_parallel.layers`.

    Raises:
      ValueError: `how` is something else.
    """
    how = how or "units"
    if how not in SHARDINGS:
        raise ValueError(
            f"how={how!r} does not apply to fully connected layers; use "
            f"{' or '.join(map(repr, SHARDINGS))}"
        )
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
    """A linear model without bias, whose weights are initialised to zero.

    Attributes:
      inputs: the number of inputs.
      outputs: the number of outputs.

    Raises:
      ValueError: a size is not an integer of at least 1.
    """

    inputs: int
    outputs: int = 1

    def __post_init__(self) -> None:
        require_sizes("linear", inputs=self.inputs, outputs=self.outputs)

    def module(self, rngs: nnx.Rngs) -> Linear:
        return Linear(self, rngs=rngs)

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        raise ValueError("model 'linear' cannot be sharded; use speech, mlp, softmax or vision")


class Linear(nnx.Module):
    """The network of a `LinearConfig`."""

    def __init__(self, config: LinearConfig, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.layer = nnx.Linear(
            config.inputs, config.outputs, use_bias=False, kernel_init=zeros, rngs=rngs
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns outputs [batch, outputs] for inputs [batch, inputs]."""
        return self.layer(inputs)


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """A multi-layer perceptron with ReLU units.

    Attributes:
      inputs: the number of inputs.
      classes: the number of logits.
      widths: the number of units of each hidden layer. Without hidden layers, the model is softmax
        regression, whose loss is convex.

    Raises:
      ValueError: a size is not an integer of at least 1.
    """

    inputs: int
    classes: int
    widths: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        hidden = {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        require_sizes("mlp", inputs=self.inputs, classes=self.classes, **hidden)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs, then the number of units of each layer."""
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

    Weights before a ReLU are initialised after He et al. 2015 (eq. 10). Weights before the softmax
    are zero, so that the initial loss is log(classes). Biases are zero.
    """

    def __init__(self, config: MlpConfig, *, rngs: nnx.Rngs) -> None:
        he, zeros = nnx.initializers.he_normal(), nnx.initializers.zeros
        self.layers = nnx.List(
            nnx.Linear(n_in, n_out, kernel_init=he if i < len(config.widths) else zeros, rngs=rngs)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(config.sizes))
        )

    def __call__(self, inputs: jax.Array, layer: Layer = whole) -> jax.Array:
        """Returns logits [batch, classes] for inputs [batch, inputs]."""
        return forward(self.layers, jax.nn.relu, inputs, layer)
