"""Small networks for small images: softmax regression, and one with hidden layers."""

from __future__ import annotations

import itertools

import jax
from flax import nnx


class Dense(nnx.Module):
    """ReLU layers of the given widths, then logits; no widths: softmax regression.

    Initialisation: He et al. 2015 before a ReLU, zeros for the output layer.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], classes: int, *, rngs: nnx.Rngs
    ) -> None:
        he, zeros = nnx.initializers.he_normal(), nnx.initializers.zeros
        sizes = [inputs, *widths]
        self.hidden = nnx.List(
            nnx.Linear(n_in, n_out, kernel_init=he, rngs=rngs)
            for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = nnx.Linear(sizes[-1], classes, kernel_init=zeros, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits, [batch, classes], of inputs [batch, inputs]."""
        for layer in self.hidden:
            inputs = jax.nn.relu(layer(inputs))
        return self.output(inputs)
