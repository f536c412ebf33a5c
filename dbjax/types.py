# ruff: noqa: F722
"""Names for the types of parameters, gradients, batches and slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float, PyTree, Shaped

# Type checkers treat a PyTree as Any; the names are for readers.
Params: TypeAlias = PyTree[Float[Array, "..."]]  # parameters, with the structure of `Task.params`
Gradient: TypeAlias = PyTree[Float[Array, "..."]]  # like the parameters
Batch: TypeAlias = PyTree[Shaped[Array, "batch ..."]]  # a mini-batch, as the loss takes it
Slice: TypeAlias = dict[str, jax.Array]  # a shard's part of the parameters: piece name -> values
Slices: TypeAlias = tuple[Slice, ...]  # one slice for each shard
LossFn: TypeAlias = Callable[..., jax.Array]  # (params, batch[, key]) -> mean loss, a scalar
Metrics: TypeAlias = Mapping[str, float]  # the name of a metric -> its value


class Keyed(NamedTuple):
    """A batch for a loss that takes a random key.

    Attributes:
      batch: the batch that the loss takes besides the key.
      numbers: uint32[n], a seed followed by the numbers that are folded into its key in turn. The
        compiled program makes the key from them, so nothing has to be computed outside of it.
    """

    batch: Batch
    numbers: Any

    @property
    def key(self) -> jax.Array:
        """The random key that `numbers` describe."""
        seed, *folded = self.numbers
        key = jax.random.key(seed)
        for number in folded:
            key = jax.random.fold_in(key, number)
        return key


def loss_of(loss: LossFn, params: Params, batch: Batch) -> jax.Array:
    """Computes the loss of a batch; if the batch is `Keyed`, the loss gets its key too."""
    if isinstance(batch, Keyed):
        return loss(params, batch.batch, batch.key)
    return loss(params, batch)
