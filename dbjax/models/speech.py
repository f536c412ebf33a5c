"""The fully connected speech network of section 5.

The input consists of 11 consecutive frames of 40 log energies. Hidden layers of sigmoid units are
followed by a softmax over acoustic states. The paper does not specify the initialisation; this
implementation uses `centred_glorot`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from dbjax.model_parallel.layers import Layer, whole
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import fully_connected
from dbjax.models.fully_connected import forward
from dbjax.models.functional import require_sizes


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """The sizes of a speech network.

    Paper: section 5. The defaults are the paper's network, which has 41,777,152 parameters and is
    also available as `PAPER`. `DEMO` is a smaller network.

    Attributes:
      inputs: the number of inputs.
      width: the number of units of each hidden layer.
      depth: the number of hidden layers.
      states: the number of acoustic states, which are the classes.

    Raises:
      ValueError: a size is not an integer of at least 1.
    """

    inputs: int = 440
    width: int = 2560
    depth: int = 4
    states: int = 8192

    def __post_init__(self) -> None:
        require_sizes("speech", **dataclasses.asdict(self))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of inputs, then the number of units of each layer."""
        return (self.inputs, *[self.width] * self.depth, self.states)

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum((below + 1) * above for below, above in itertools.pairwise(self.sizes))

    @property
    def outputs(self) -> int:
        return self.states

    def module(self, rngs: nnx.Rngs) -> Speech:
        return Speech(self, rngs=rngs)

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        return fully_connected.sharding(self, self.sizes, devices, how)


PAPER = SpeechConfig()
DEMO = SpeechConfig(width=256, states=128)


class Speech(nnx.Module):
    """`depth` hidden layers of `width` sigmoid units, then logits for `states` states."""

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs) -> None:
        sizes = config.sizes
        inputs_mean = [0.0] + [0.5] * config.depth  # of normalised features; of sigmoid units
        self.layers = nnx.List(
            centred_glorot(n_in, n_out, mean, last=i == config.depth, rngs=rngs)
            for i, (n_in, n_out, mean) in enumerate(
                zip(sizes[:-1], sizes[1:], inputs_mean, strict=True)
            )
        )

    def __call__(self, inputs: jax.Array, layer: Layer = whole) -> jax.Array:
        """Returns logits [batch, states] for inputs [batch, inputs]."""
        return forward(self.layers, jax.nn.sigmoid, inputs, layer)


def centred_glorot(
    n_in: int, n_out: int, inputs_mean: float, *, last: bool, rngs: nnx.Rngs
) -> nnx.Linear:
    """Returns a layer that initially preserves the scale of signals and of gradients.

    Weights are uniform with variance 2 / (n_in + n_out) (Glorot & Bengio 2010, eq. 16). Before a
    sigmoid, whose slope at 0 is 1/4, they are multiplied by 4, as Glorot & Bengio advise. Biases
    cancel the contribution of the inputs' mean, which is 1/2 for sigmoid units, because inputs
    should be centred (LeCun et al. 1998, section 4.3). With plain Glorot initialisation the
    gradient shrinks by a factor of about 4 per layer, and five layers do not train.

    Args:
      n_in: the number of inputs.
      n_out: the number of units.
      inputs_mean: the mean of the inputs.
      last: whether the layer is the last one, which precedes the softmax and not a sigmoid.
      rngs: the source of random keys.
    """
    gain = 1.0 if last else 4.0
    layer = nnx.Linear(n_in, n_out, rngs=rngs, kernel_init=nnx.initializers.zeros)
    bound = gain * math.sqrt(6 / (n_in + n_out))
    kernel = jax.random.uniform(rngs.params(), (n_in, n_out), minval=-bound, maxval=bound)
    layer.kernel[...] = kernel
    if layer.bias is not None:
        layer.bias[...] = -inputs_mean * jnp.sum(kernel, axis=0)
    return layer
