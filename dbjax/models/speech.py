"""The fully connected speech network of section 5.

Input: 11 consecutive frames of 40 log energies. Hidden layers of sigmoid units, softmax
over acoustic states. The paper gives sizes, and no initialisation: ours is `as_tanh`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dbjax.models.sizes import require_sizes


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """Sizes: `inputs`, then `depth` layers of `width` sigmoid units, then `states` logits."""

    inputs: int = 440
    width: int = 2560
    depth: int = 4
    states: int = 8192

    def __post_init__(self) -> None:
        require_sizes("speech", **dataclasses.asdict(self))

    def module(self, rngs: nnx.Rngs) -> Speech:
        return Speech(self, rngs=rngs)


PAPER = SpeechConfig()  # 41,777,152 parameters: the paper's "about 42 million"
DEMO = SpeechConfig(width=256, states=128)
TINY = SpeechConfig(inputs=40, width=32, depth=2, states=8)


class Speech(nnx.Module):
    """The network of a `SpeechConfig`."""

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs) -> None:
        widths = [config.inputs, *[config.width] * config.depth, config.states]
        self.layers = nnx.List(
            as_tanh(n_in, n_out, first=i == 0, last=i == config.depth, rngs=rngs)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits, [batch, states], of inputs [batch, inputs]."""
        *hidden, output = self.layers
        for layer in hidden:
            inputs = jax.nn.sigmoid(layer(inputs))
        return output(inputs)
