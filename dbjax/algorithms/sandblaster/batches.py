"""Which portions a batch is made of: all of them, or a fresh part each iteration."""

from __future__ import annotations

import dataclasses
from typing import final

from dbjax.parameter_server.vector_shard import PARTS

Parts = dict[str, tuple[int, ...]]


@final
@dataclasses.dataclass(frozen=True)
class Batches:
    """Samples of `size` portions of `count`; two that follow each other share `overlap`.

    Berahas, Nocedal & Takac 2016, "A Multi-Batch L-BFGS Method for Machine Learning":
    differences of gradients are taken over the examples that two samples share, so that
    curvature pairs are of one function. A sample goes on where the one before ended, but
    for the overlap, around and around.
    """

    count: int
    size: int
    overlap: int

    @property
    def whole(self) -> bool:
        """Whether every sample is all the data."""
        return self.size == self.count

    def parts(self, sample: int) -> Parts:
        """The portions of a sample, by what they are shared with."""
        if self.whole:
            return {"only": tuple(range(self.count))}
        begin = sample * (self.size - self.overlap)
        portions = [(begin + i) % self.count for i in range(self.size)]
        cut, end = self.overlap, self.size - self.overlap
        found = (portions[:cut], portions[cut:end], portions[end:])
        return {part: tuple(p) for part, p in zip(PARTS, found, strict=True) if p}


def make_batches(count: int, share: float, overlap: float) -> Batches:
    """Samples of a share of `count` portions, of which a part `overlap` is shared.

    Raises:
      ValueError: there are too few portions for that.
    """
    if share == 1.0:
        return Batches(count, count, 0)
    size = round(share * count)
    shared = round(overlap * size)
    if shared < 1 or 2 * shared > size or size >= count:
        raise ValueError(
            f"sandblaster.sample={share} of {count} portions with overlap={overlap} are {size} "
            f"and {shared} portions: needs at least 1 shared, at most half; smaller portions "
            "(batch_size) make more of them"
        )
    return Batches(count, size, shared)
