"""The portions that make up each batch: all of them, or a new sample in each iteration."""

from __future__ import annotations

import dataclasses
from typing import final

from dbjax.parameter_server.vector_shard import PARTS

Parts = dict[str, tuple[int, ...]]  # a name of `PARTS` -> the portions of that part


@final
@dataclasses.dataclass(frozen=True)
class Batches:
    """Chooses the portions of each sample; consecutive samples overlap.

    Berahas, Nocedal & Takac 2016, "A Multi-Batch L-BFGS Method for Machine Learning": differences
    of gradients are taken over the examples that two samples share, so that both gradients of a
    curvature pair belong to the same function. Samples go through the portions cyclically: each
    one begins at the overlap with the previous one.

    Attributes:
      count: the number of portions of the data.
      size: the number of portions of a sample.
      overlap: the number of portions that two consecutive samples share.
    """

    count: int
    size: int
    overlap: int

    @property
    def whole(self) -> bool:
        """Whether every sample consists of all the data."""
        return self.size == self.count

    def parts(self, sample: int) -> Parts:
        """Returns the portions of a sample, by the part of the sample that they belong to.

        Args:
          sample: the number of the sample, from 0.
        """
        if self.whole:
            return {"only": tuple(range(self.count))}
        begin = sample * (self.size - self.overlap)
        portions = [(begin + i) % self.count for i in range(self.size)]
        first, last = self.overlap, self.size - self.overlap
        found = (portions[:first], portions[first:last], portions[last:])
        return {part: tuple(p) for part, p in zip(PARTS, found, strict=True) if p}


def make_batches(count: int, share: float, overlap: float) -> Batches:
    """Returns the samples of a run.

    Args:
      count: the number of portions of the data.
      share: the fraction of the portions in a sample; 1: all of them.
      overlap: the fraction of a sample that it shares with the next sample.

    Raises:
      ValueError: there are too few portions for such samples.
    """
    if share == 1.0:
        return Batches(count, count, 0)
    size = round(share * count)
    shared = round(overlap * size)
    if shared < 1 or 2 * shared > size or size >= count:
        raise ValueError(
            f"sandblaster.sample={share} of {count} portions is {size} portions, of which "
            f"overlap={overlap} is {shared}: the sample must be smaller than the data, and its "
            "overlap at least 1 and at most half; reduce batch_size to get more, smaller portions"
        )
    return Batches(count, size, shared)
