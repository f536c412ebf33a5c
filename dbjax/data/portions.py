"""The training data in portions, for batch methods (section 4.2)."""

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
from dbjax.data.stream import dealt
from dbjax.types import Batch, Keyed

_MOST_COMING = 64  # portions that are read ahead and not yet asked for


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Portions:
    """Portions of `portion_size` examples, numbered from 0; the last may be smaller.

    Which example is in which portion is drawn once, from `seed`. Portions that were
    gathered stay in memory as long as there is room, so that whoever works on the same
    ones in every evaluation (data affinity) reads them once.

    Attributes:
      held_bytes: at most this much is kept; the rest is gathered each time.
      keyed: whether a portion comes with the key of its loss, see `Task.takes_key`; then it is
        gathered by itself. The key is the same in every evaluation: so the loss is one function.
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
        """Without what is gathered: it is another process that asks."""
        made_of = (self.examples, self.portion_size, self.seed, self.held_bytes, self.keyed)
        return Portions, made_of

    @property
    def count(self) -> int:
        return -(-len(self.examples) // self.portion_size)

    def size_of(self, portions: Iterable[int]) -> int:
        """Examples in these portions together."""
        size, whole = self.portion_size, len(self.examples)
        return sum(min(size, whole - portion * size) for portion in portions)

    def gather(self, portions: tuple[int, ...]) -> Batch:
        """The examples of these portions, one after another, as jax arrays."""
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
        """Begins to gather in a thread of its own what will be asked for next."""
        known = portions in self._held or portions in self._coming
        there_are = portions[-1] < self.count
        if there_are and not known and len(self._coming) < _MOST_COMING:
            self._coming[portions] = self._pool.submit(self._read, portions)

    def _read(self, portions: tuple[int, ...]) -> Batch:
        size = self.portion_size
        order = dealt(len(self.examples), self.seed)
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
