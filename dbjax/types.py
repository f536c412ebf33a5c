# ruff: noqa: F722
"""Names for the types of what travels through the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float, PyTree, Shaped

# Type checkers take a PyTree for Any; the names are for readers.
Params: TypeAlias = PyTree[Float[Array, "..."]]  # parameters, with the structure of `Task.params`
Gradient: TypeAlias = PyTree[Float[Array, "..."]]  # like the parameters
Batch: TypeAlias = PyTree[Shaped[Array, "batch ..."]]  # a mini-batch, as the loss takes it
Slice: TypeAlias = dict[str, jax.Array]  # what a shard holds: the name of a piece -> its values
Slices: TypeAlias = tuple[Slice, ...]  # one slice for each shard
LossFn: TypeAlias = Callable[..., jax.Array]  # (params, batch), perhaps a key -> mean loss, scalar
Metrics: TypeAlias = Mapping[str, float]  # the name of a metric -> its value


class Keyed(NamedTuple):
    """A batch whose loss takes a random key.

    Attributes:
      batch: what the loss takes beside the key.
      numbers: uint32: a seed, and what is folded into its key, one number after another. The
        compiled program makes the key of them, so that nothing has to be computed before it.
    """

    batch: Batch
    numbers: Any

    @property
    def key(self) -> jax.Array:
        seed, *folded = self.numbers
        key = jax.random.key(seed)
        for number in folded:
            key = jax.random.fold_in(key, number)
        return key


def loss_of(loss: LossFn, params: Params, batch: Batch) -> jax.Array:
    """The loss of a batch, which is given its key if it takes one."""
    if isinstance(batch, Keyed):
        return loss(params, batch.batch, batch.key)
    return loss(params, batch)
