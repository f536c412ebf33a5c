"""Linear regression, whose loss is a quadratic."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models.functional import require_sizes


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
