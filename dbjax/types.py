"""Names for what travels through the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of arrays
Gradient = Any  # a pytree like Params
Batch = Any  # whatever the loss takes
Slice = dict[str, jax.Array]  # what one shard holds: name of the piece -> its values
Slices = tuple[Slice, ...]  # one for each shard
LossFn = Callable[..., jax.Array]  # (params, batch), perhaps a key -> mean over the batch
Metrics = Mapping[str, float]


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
