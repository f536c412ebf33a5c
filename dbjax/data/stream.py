"""Each replica's endless mini-batches, from its own part of the data (section 4.1)."""

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
    """Mini-batches of replica `replica` of `replicas`.

    The data is dealt, once, in an order drawn from `seed`: the parts are disjoint, cover
    everything, and are equal to within one example. Every epoch goes through the part in
    a fresh order; a mini-batch may reach over the end of an epoch, so all are full.

    `at` is a pure function of the step: nothing has to be saved to resume or to replay.

    Attributes:
      keyed: whether a batch comes with the key of its loss, see `Task.takes_key`.

    Raises:
      ValueError: there are fewer examples than replicas.
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
        """Numbers of this replica's examples."""
        return dealt(len(self.examples), self.seed)[self.replica :: self.replicas]

    def at(self, step: int) -> Batch:
        """The mini-batch of that step."""
        if not self.keyed:
            return self._examples_at(step)
        numbers = np.array([self.seed, self.replica, step], np.uint32)
        return Keyed(self._examples_at(step), numbers)

    def _examples_at(self, step: int) -> Batch:
        begin, size = step * self.batch_size, len(self.part)
        positions = np.arange(begin, begin + self.batch_size)
        epochs, places = np.divmod(positions, size)
        if epochs[0] == epochs[-1]:
            return self.examples.gather(self._order(int(epochs[0]))[places])
        chosen = [self._order(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return self.examples.gather(np.concatenate(chosen))

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.at(step)
            step += 1

    def _order(self, epoch: int) -> Indices:
        """The part in the order of that epoch; only the latest one is kept."""
        if self._latest.get("epoch") != epoch:
            random = np.random.default_rng([self.seed, self.replica, self.replicas, epoch, 1])
            self._latest.update(epoch=epoch, order=random.permutation(self.part))
        order: Indices = self._latest["order"]
        return order

    @functools.cached_property
    def _latest(self) -> dict[str, Any]:
        return {}


@functools.lru_cache(maxsize=4)
def dealt(examples: int, seed: int) -> Indices:
    """All examples in the order in which they are dealt to the replicas."""
    order = np.random.default_rng([seed, 0]).permutation(examples)
    order.flags.writeable = False
    return order
