"""The gradients that a replica has computed but not yet pushed: the paper's accruedgradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dbjax.parameter_server.abstract import is_abstract, plus
from dbjax.parameter_server.gradient_sums import add
from dbjax.parameter_server.partition import slice_nbytes
from dbjax.parameter_server.shard import Push
from dbjax.types import Slice, Slices


class AccumulatedGradient(NamedTuple):
    """The sum of a replica's gradients since its last push; empty at first.

    Paper: Algorithm 1.1, "accruedgradients".

    Attributes:
      gradient: the sum, a slice for each shard; None stands for zero.
      versions: for each shard, the version of its slice at which the oldest gradient was computed.
      examples: the number of examples that the gradients were computed from.
    """

    gradient: Slices | None = None
    versions: tuple[int, ...] = ()
    examples: int = 0

    def plus(
        self, gradient: Slices, versions: tuple[int, ...], examples: int
    ) -> AccumulatedGradient:
        """Returns the sum with one more gradient; this object stays as it is.

        Args:
          gradient: the mean gradient over a mini-batch, a slice for each shard.
          versions: the versions of the parameters at which it was computed, one for each shard.
          examples: the number of examples in the mini-batch.
        """
        if self.gradient is None:
            return AccumulatedGradient(gradient, versions, examples)
        total = (
            plus(self.gradient, gradient) if is_abstract(gradient) else add(self.gradient, gradient)
        )
        return AccumulatedGradient(total, self.versions, self.examples + examples)

    def messages(
        self,
        replica: str,
        sequence: int,
        size_bytes: Callable[[Slice], int] = slice_nbytes,
    ) -> Iterator[Push]:
        """Yields one push for each shard, created lazily.

        The iterator keeps no reference to a push that it has yielded. If nothing else refers to
        the gradient, the memory of each slice is freed as soon as its shard has applied it.

        Args:
          replica: the name of the node that pushes.
          sequence: the number of this push among the replica's pushes: 0, 1, 2, ...
          size_bytes: a function from a slice of the gradient to its size on the wire, in bytes.

        Raises:
          ValueError: no gradient has been accumulated.
        """
        if self.gradient is None:
            raise ValueError("no gradient has been accumulated: push after the first gradient")
        left = list(zip(self.versions, self.gradient, strict=True))[::-1]
        return _pushes(left, replica, sequence, self.examples, size_bytes)


NOTHING = AccumulatedGradient()


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
