"""Names for what travels through the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

Params = Any  # a pytree of arrays
Gradient = Any  # a pytree like Params
Batch = Any  # whatever the loss takes
Slice = dict[str, jax.Array]  # what one shard holds: name of the piece -> its values
Slices = tuple[Slice, ...]  # one for each shard
LossFn = Callable[[Params, Batch], jax.Array]  # mean over the batch
Metrics = Mapping[str, float]
