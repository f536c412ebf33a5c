"""Small networks for small images: softmax regression, and one with hidden layers."""

from __future__ import annotations

import dataclasses
import itertools

import jax
from flax import nnx

from dbjax.model_parallel.layers import Layer, whole
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import layered
from dbjax.models.functional import require_sizes
from dbjax.models.layered import forward


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
        return layered.sharding(self, self.sizes, devices, how)


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
