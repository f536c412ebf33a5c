"""An endless stream of mini-batches for each replica, from its part of the data (section 4.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, final

import numpy as np

from dbjax.arguments import require_at_least, require_fields
from dbjax.data.examples import Examples
from dbjax.types import Batch, Keyed

Indices = np.ndarray[Any, np.dtype[np.int64]]


@final
@dataclasses.dataclass(frozen=True)
class Stream:
    """The mini-batches of one of several replicas.

    The examples are divided among the replicas in a random order drawn from `seed`: the parts are
    disjoint, cover the whole data set, and differ in size by at most one example. Every epoch
    visits the replica's part in a new random order. A mini-batch may continue into the next epoch,
    so all have exactly `batch_size` examples.

    `at` is a pure function of the step, so that a stream has no state to save for resuming or
    replaying a run.

    Paper: section 4.1 ("divide the training data into a number of subsets").

    Attributes:
      examples: the whole training data.
      batch_size: the number of examples in a mini-batch.
      seed: the seed of all random orders.
      replica: the number of this replica, from 0 to replicas - 1.
      replicas: the number of replicas that share the data.
      keyed: whether a mini-batch comes with the random key of its loss; see `Task.takes_key`.

    Raises:
      ValueError: there are fewer examples than replicas, or a number is out of range.
    """

    examples: Examples
    batch_size: int
    seed: int = 0
    replica: int = 0
    replicas: int = 1
    keyed: bool = False

    def __post_init__(self) -> None:
        require_fields("Stream", self)
        require_at_least("Stream", 1, batch_size=self.batch_size, replicas=self.replicas)
        require_at_least("Stream", 0, seed=self.seed)
        if not 0 <= self.replica < self.replicas:
            raise ValueError(f"replica={self.replica} is not one of replicas={self.replicas}")
        if len(self.examples) < self.replicas:
            raise ValueError(
                f"{len(self.examples)} examples cannot be dealt to replicas={self.replicas}"
            )

    @functools.cached_property
    def part(self) -> Indices:
        """The indices of this replica's examples, int64 [examples of the part]."""
        return shuffled_order(len(self.examples), self.seed)[self.replica :: self.replicas]

    def at(self, step: int) -> Batch:
        """Returns the mini-batch of the given step; steps count from 0."""
        if not self.keyed:
            return self._examples_at(step)
        numbers = np.array([self.seed, self.replica, step], np.uint32)
        return Keyed(self._examples_at(step), numbers)

    def _examples_at(self, step: int) -> Batch:
        begin = step * self.batch_size
        end = begin + self.batch_size
        return self.examples.gather(self._indices(np.arange(begin, end), begin, end))

    def indices(self, steps: Indices) -> Indices:
        """Returns the indices of the examples of mini-batches.

        Args:
          steps: the numbers of the steps, int64 [steps].

        Returns:
          int64 [steps, batch_size].
        """
        positions = steps[:, None] * self.batch_size + np.arange(self.batch_size)
        return self._indices(positions, int(positions.min()), int(positions.max()) + 1)

    def _indices(self, positions: Indices, begin: int, end: int) -> Indices:
        """Returns the indices of the examples at positions of the stream, from `begin` to `end`."""
        size = len(self.part)
        first, last = begin // size, (end - 1) // size
        if first == last:
            return self._order(first)[positions - first * size]
        orders = np.concatenate([self._order(epoch) for epoch in range(first, last + 1)])
        found: Indices = orders[positions - first * size]
        return found

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.at(step)
            step += 1

    def _order(self, epoch: int) -> Indices:
        """The example indices in the order of the given epoch; only the latest order is cached."""
        known, order = self._latest[0]
        if known != epoch:
            random = np.random.default_rng([self.seed, self.replica, self.replicas, epoch, 1])
            order = random.permutation(self.part)
            self._latest[0] = epoch, order  # at once: threads may share a stream
        return order

    @functools.cached_property
    def _latest(self) -> list[tuple[int, Indices]]:
        return [(-1, self.part)]


@functools.lru_cache(maxsize=4)
def shuffled_order(examples: int, seed: int) -> Indices:
    """The random order, drawn from `seed`, in which example indices are dealt to the replicas."""
    order = np.random.default_rng([seed, 0]).permutation(examples)
    order.flags.writeable = False
    return order
