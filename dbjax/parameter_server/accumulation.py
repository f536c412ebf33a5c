"""Gradients that a replica has computed and not yet pushed: the paper's accruedgradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from dbjax.parameter_server.gradient_sums import add
from dbjax.parameter_server.partition import slice_nbytes
from dbjax.parameter_server.shard import Push
from dbjax.types import Slice, Slices


@dataclasses.dataclass(frozen=True)
class AccumulatedGradient:
    """The sum of gradients since the last push; empty at first.

    Paper: Algorithm 1.1, "accruedgradients".

    Attributes:
      gradient: the sum, a slice for each shard; None stands for zero.
      versions: of each shard's slice, when the oldest of the gradients was computed.
      examples: how many examples the gradients saw.
    """

    gradient: Slices | None = None
    versions: tuple[int, ...] = ()
    examples: int = 0

    def plus(
        self, gradient: Slices, versions: tuple[int, ...], examples: int
    ) -> AccumulatedGradient:
        """The sum with one more gradient.

        Args:
          gradient: the mean over a mini-batch, a slice for each shard.
          versions: of the parameters that it was computed at.
          examples: in the mini-batch.
        """
        if self.gradient is None:
            return AccumulatedGradient(gradient, versions, examples)
        total = add(self.gradient, gradient)
        return AccumulatedGradient(total, self.versions, self.examples + examples)

    def messages(
        self,
        replica: str,
        sequence: int,
        size_bytes: Callable[[Slice], int] = slice_nbytes,
    ) -> Iterator[Push]:
        """One push for each shard. Each is made when it is asked for, once.

        The iterator lets go of what it has handed out: where nobody else holds the gradient, the
        memory of each slice is free again when its shard has applied it.

        Args:
          replica: the name of the node that pushes.
          sequence: the number of the push among the replica's: 0, 1, 2, ...
          size_bytes: how many bytes a slice of the gradient takes on its way.

        Raises:
          ValueError: nothing was accumulated.
        """
        if self.gradient is None:
            raise ValueError("nothing is accrued: push after the first gradient")
        left = list(zip(self.versions, self.gradient, strict=True))[::-1]
        return _pushes(left, replica, sequence, self.examples, size_bytes)


def _pushes(
    left: list[tuple[int, Slice]],
    replica: str,
    sequence: int,
    examples: int,
    size_bytes: Callable[[Slice], int],
) -> Iterator[Push]:
    while left:
        version, slice_ = left.pop()
        yield Push(replica, sequence, version, examples, slice_, size_bytes(slice_))
