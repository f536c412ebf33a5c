"""Splits the training data into portions, the units of work of batch methods (section 4.2)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.arguments import require_at_least, require_fields
from dbjax.data.examples import Examples
from dbjax.data.stream import shuffled_order
from dbjax.types import Batch, Keyed

_MOST_COMING = 64  # prefetched batches that have not been requested yet


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Portions:
    """Portions of `portion_size` examples, numbered from 0; the last one may be smaller.

    The assignment of examples to portions is a random permutation drawn from `seed`. Gathered
    portions are cached while there is room, so that a replica that works on the same portions in
    every evaluation (data affinity) reads them only once.

    Paper: section 4.2, Sandblaster's portions of a batch.

    Attributes:
      examples: the training data.
      portion_size: the number of examples in a portion.
      seed: the seed of the assignment.
      held_bytes: the most memory, in bytes, that the cache may use; portions beyond it are
        gathered again in every evaluation.
      keyed: whether each portion comes with the random key of its loss (see `Task.takes_key`);
        portions are then gathered one at a time. A portion has the same key in every evaluation,
        so that the loss is a fixed function of the parameters.

    Raises:
      ValueError: a number is out of range.
    """

    examples: Examples
    portion_size: int
    seed: int = 0
    held_bytes: int = 2**31
    keyed: bool = False

    def __post_init__(self) -> None:
        require_fields("Portions", self)
        require_at_least("Portions", 1, portion_size=self.portion_size)
        require_at_least("Portions", 0, seed=self.seed, held_bytes=self.held_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without the cache: the receiver is another process."""
        made_of = (self.examples, self.portion_size, self.seed, self.held_bytes, self.keyed)
        return Portions, made_of

    @property
    def count(self) -> int:
        """The number of portions."""
        return -(-len(self.examples) // self.portion_size)

    def size_of(self, portions: Iterable[int]) -> int:
        """The total number of examples in the given portions."""
        size, whole = self.portion_size, len(self.examples)
        return sum(min(size, whole - portion * size) for portion in portions)

    def gather(self, portions: tuple[int, ...]) -> Batch:
        """Returns the examples of the given portions, concatenated, as jax arrays.

        Args:
          portions: portion numbers; exactly one if `keyed`.
        """
        if portions in self._held:
            return self._held[portions]
        coming = self._coming.pop(portions, None)
        batch = coming.result() if coming is not None else self._read(portions)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
        if self._room[0] >= size:
            self._room[0] -= size
            self._held[portions] = batch
        return batch

    def read_ahead(self, portions: tuple[int, ...]) -> None:
        """Starts to gather the given portions in a background thread.

        Does nothing if they are already cached or being read, if the last of them does not exist,
        or if 64 prefetched batches are still waiting to be requested.

        Args:
          portions: the portion numbers of a later call of `gather`, ascending.
        """
        known = portions in self._held or portions in self._coming
        there_are = portions[-1] < self.count
        if there_are and not known and len(self._coming) < _MOST_COMING:
            self._coming[portions] = self._pool.submit(self._read, portions)

    def _read(self, portions: tuple[int, ...]) -> Batch:
        size = self.portion_size
        order = shuffled_order(len(self.examples), self.seed)
        chosen = [order[portion * size : (portion + 1) * size] for portion in portions]
        batch = self.examples.gather(np.concatenate(chosen))
        if self.keyed:
            (portion,) = portions
            batch = Keyed(batch, np.array([self.seed, portion], np.uint32))
        return jax.tree.map(jnp.asarray, batch)

    @functools.cached_property
    def _held(self) -> dict[tuple[int, ...], Batch]:
        return {}

    @functools.cached_property
    def _coming(self) -> dict[tuple[int, ...], concurrent.futures.Future[Any]]:
        return {}

    @functools.cached_property
    def _room(self) -> list[int]:
        return [self.held_bytes]

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="portions")
