"""Examples held in memory, gathered by number."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, final

import jax
import numpy as np

from dbjax.types import Batch


class Labelled(NamedTuple):
    """A mini-batch: inputs float32 [batch, ...], labels int32 [batch].

    Those of a regression are float32 [batch, outputs].
    """

    inputs: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[Any]]


class Examples(Protocol):
    """Random access to examples in memory."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        """The mini-batch of these examples, in this order: one vectorised gather."""


@final
@dataclasses.dataclass(frozen=True)
class Arrays:
    """A pytree of arrays with equal first dimension; a batch has the same structure.

    Raises:
      ValueError: there are no arrays, no examples, or their numbers differ.
    """

    tree: Any

    def __post_init__(self) -> None:
        lengths = {
            jax.tree_util.keystr(path) or "data": len(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.tree)
        }
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                f"data needs arrays with the same number of examples, at least 1; got {lengths}"
            )

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.tree)[0])

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
        return jax.tree.map(lambda values: np.asarray(values)[indices], self.tree)


@final
@dataclasses.dataclass(frozen=True)
class Frames:
    """Acoustic frames with their context: the 11 x 40 inputs of section 5.

    Attributes:
      features: normalised, float32 [frames, energies].
      labels: int32 [frames].
      first: int64 [frames], number of the first frame of each frame's utterance.
      last: int64 [frames], number of the last one.
      context: frames on either side; beyond an utterance its edge frame is repeated.
    """

    features: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int32]]
    first: np.ndarray[Any, np.dtype[np.int64]]
    last: np.ndarray[Any, np.dtype[np.int64]]
    context: int = 5

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Labelled:
        offsets = np.arange(-self.context, self.context + 1)
        window = indices[:, None] + offsets
        np.maximum(window, self.first[indices, None], out=window)
        np.minimum(window, self.last[indices, None], out=window)
        inputs = self.features[window].reshape(len(indices), -1)
        return Labelled(inputs, self.labels[indices])
