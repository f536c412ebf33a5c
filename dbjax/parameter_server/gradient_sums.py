"""Sums of gradients over portions of the data, at one set of parameters.

Except for rounding, a sum over portions does not depend on how they are grouped. A runtime that
models time (`dbjax.runtime.virtual`) may therefore defer the arithmetic, and compute the gradients
of all replicas in a few large programs when the sum is needed: `DeferredSum`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, final

import jax
import numpy as np

from dbjax.parameter_server.gradient_fn import PartitionedGradientFn
from dbjax.parameter_server.partition import Partition, compiled_join, compiled_split
from dbjax.types import Batch, LossFn, Slice, Slices, loss_of


class ShardSum(NamedTuple):
    """One shard's part of a sum.

    Attributes:
      loss: the summed loss, a scalar; the same for all shards.
      gradient: the shard's slice of the summed gradient.
    """

    loss: jax.Array
    gradient: Slice


class GradientSum(NamedTuple):
    """The loss and its gradient, as weighted sums over portions.

    Attributes:
      loss: the summed loss, a scalar.
      gradient: the summed gradient, a slice for each shard.
    """

    loss: jax.Array
    gradient: Slices

    def piece(self, shard: int) -> ShardSum:
        """Returns one shard's part of the sum."""
        return ShardSum(self.loss, self.gradient[shard])


Numerics = Callable[[Slices, tuple[int, ...], int], GradientSum]


@final
class DeferredSum:
    """A `GradientSum` that is computed only when needed, together with the sums added to it.

    Args:
      numerics: computes the sum: (slices, portions, total) -> `GradientSum`.
      params: the parameters, a slice for each shard.
      portions: the portions to sum over.
      total: the number of examples in the batch; each example has the weight 1 / total.
    """

    __slots__ = ("numerics", "params", "portions", "total")

    def __init__(
        self, numerics: Numerics, params: Slices, portions: tuple[int, ...], total: int
    ) -> None:
        self.numerics, self.params, self.portions, self.total = numerics, params, portions, total

    def piece(self, shard: int) -> DeferredShardSum:
        """Returns one shard's part of the sum."""
        return DeferredShardSum(self, shard)


class DeferredShardSum(NamedTuple):
    """One shard's part of a deferred sum.

    Attributes:
      sum: the deferred sum.
      shard: the index of the shard.
    """

    sum: DeferredSum
    shard: int


def add_sums(sums: Sequence[GradientSum | DeferredSum]) -> GradientSum | DeferredSum:
    """Adds sums in order.

    Args:
      sums: at least one sum; all are deferred, or none is.

    Raises:
      RuntimeError: the sums are deferred, and at different parameters.
    """
    first = sums[0]
    if not isinstance(first, DeferredSum):
        total: GradientSum = functools.reduce(add, sums[1:], first)
        return total
    portions: list[int] = []
    for one in sums:
        assert isinstance(one, DeferredSum)
        if not (_same(one.params, first.params) or _equal(one.params, first.params)):
            raise RuntimeError("sums at different parameters cannot be added")
        portions += one.portions
    return DeferredSum(first.numerics, first.params, tuple(portions), first.total)


def _same(a: Slices, b: Slices) -> bool:
    return all(x is y for x, y in zip(a, b, strict=True))


def _equal(a: Slices, b: Slices) -> bool:
    """Compares values: the two copies of a shard compute equal arrays, each for itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x is y or np.array_equal(x, y) for x, y in pairs)


@jax.jit
def add(a: Any, b: Any) -> Any:
    """Adds two pytrees of arrays, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + y, a, b)


@jax.jit
def add_all(first: Any, *others: Any) -> Any:
    """Adds pytrees of arrays in order, leaf by leaf, in one pass over memory."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


@final
class GradientSums:
    """Computes (slices, portions, total) -> `GradientSum`, for replicas and for `DeferredSum`.

    Args:
      loss: (params, batch) -> the mean loss over the batch, a scalar.
      partition: the partition of the parameters into slices.
      gather: portions -> a batch of their examples, in order.
      size_of: portions -> the number of their examples.
      together: the maximum number of portions in one program, for deferred sums.
      like: slices with the shapes and dtypes of the parameters, for compiling ahead.
      on_devices: the gradient function of a model-parallel replica; None: no model parallelism.
    """

    def __init__(
        self,
        loss: LossFn,
        partition: Partition,
        gather: Callable[[tuple[int, ...]], Batch],
        size_of: Callable[[tuple[int, ...]], int],
        together: int,
        like: Slices,
        on_devices: PartitionedGradientFn | None = None,
    ) -> None:
        self._made_of = (loss, partition, gather, size_of, together, like, on_devices)
        self._gather, self._size_of, self._together = gather, size_of, together
        self._latest: list[tuple[Slices, tuple[int, ...], GradientSum]] = []
        self._of_slices = _Weighted(on_devices) if on_devices else _compiled(loss, partition)
        self._of_whole = _compiled(loss, None)
        self._partition, self._like = partition, like

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments; another process compiles the programs again."""
        return GradientSums, self._made_of

    def compile_ahead(self) -> None:
        """Compiles the program for one full portion."""
        self.lower(self._like, (0,), 1).compile()

    def __call__(self, slices: Slices, portions: tuple[int, ...], total: int) -> GradientSum:
        """Computes the sum over portions; each example has the weight 1 / total.

        Args:
          slices: the parameters, a slice for each shard.
          portions: the portions to sum over.
          total: the number of examples in the batch.
        """
        weight = self._size_of(portions) / total
        found: GradientSum = self._of_slices(slices, self._gather(portions), weight)
        return found

    def work(self, slices: Slices, portions: tuple[int, ...], total: int) -> int:
        """Returns the number of examples, on which the duration of `__call__` depends."""
        return self._size_of(portions)

    def lower(self, slices: Slices, portions: tuple[int, ...], total: int) -> jax.stages.Lowered:
        """Lowers the program of `__call__`."""
        return self._of_slices.lower(slices, self._gather(portions), 1.0)

    def all_at_once(self, slices: Slices, portions: tuple[int, ...], total: int) -> GradientSum:
        """Computes a deferred sum in the order of the portions, as many at once as allowed.

        The latest results are kept, because every shard asks for the same sum.

        Args:
          slices: the parameters, a slice for each shard.
          portions: the portions to sum over.
          total: the number of examples in the batch; each example has the weight 1 / total.
        """
        portions = tuple(sorted(portions))
        for params, known, found in self._latest:
            if known == portions and _same(params, slices):
                return found
        params, parts = compiled_join(self._partition)(slices), []
        for chunk in _chunks(portions, self._together):
            weight = self._size_of(chunk) / total
            parts.append(self._of_whole(params, self._gather(chunk), weight))
        loss, gradient = functools.reduce(add, parts)
        summed = GradientSum(loss, compiled_split(self._partition)(gradient))
        fresh = [one for one in self._latest if _same(one[0], slices)]
        self._latest = [*fresh, (slices, portions, summed)]
        return summed


@final
class DeferredGradientSums:
    """Returns a `DeferredSum` where `GradientSums` computes the sum at once.

    Args:
      sums: computes the sums when they are needed.
    """

    def __init__(self, sums: GradientSums) -> None:
        self._sums, self.work, self.lower = sums, sums.work, sums.lower

    def __call__(self, slices: Slices, portions: tuple[int, ...], total: int) -> DeferredSum:
        return DeferredSum(self._sums.all_at_once, slices, portions, total)


@final
class _Weighted:
    """Does the same as `_compiled`, for a model-parallel replica."""

    def __init__(self, gradient_fn: PartitionedGradientFn) -> None:
        self._gradient_fn = gradient_fn

    def __call__(self, slices: Slices, batch: Batch, weight: float) -> GradientSum:
        weighted: GradientSum = _times(GradientSum(*self._gradient_fn(slices, batch)), weight)
        return weighted

    def lower(self, slices: Slices, batch: Batch, weight: float) -> jax.stages.Lowered:
        """Lowers the devices' joint program, which leaves out the product with the weight."""
        return self._gradient_fn.lower(slices, batch)


@jax.jit
def _times(mean: GradientSum, weight: float) -> Any:
    return jax.tree.map(lambda x: weight * x, mean)


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn, partition: Partition | None) -> jax.stages.Wrapped:
    """Compiles (parameters, batch, weight) -> weighted sum.

    With a partition, the parameters and the gradient are slices; without, they are whole.
    """

    @jax.jit
    def compute(params: Any, batch: Batch, weight: float) -> GradientSum:
        def weighted(params: Any) -> jax.Array:
            whole = params if partition is None else partition.join(params)
            return weight * loss_of(loss, whole, batch)

        return GradientSum(*jax.value_and_grad(weighted)(params))

    return compute


def _chunks(portions: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Returns chunks of `most` portions, then of half, a quarter, ...: few sizes to compile for."""
    chunks, begin, size = [], 0, most
    while begin < len(portions):
        if size <= len(portions) - begin:
            chunks.append(portions[begin : begin + size])
            begin += size
        else:
            size = max(1, size // 2)
    return chunks


class SumAccumulator(Protocol):
    """Accumulates the pieces of a sum on one shard."""

    def add(self, place: int, piece: Any) -> None:
        """Adds a piece.

        Args:
          place: the index of the piece's first portion in its part of the sample.
          piece: a `ShardSum` or a `DeferredShardSum`.
        """

    def total(self) -> ShardSum:
        """Returns the sum of all pieces that were added."""

    def copy(self) -> SumAccumulator:
        """Returns a copy, which does not change when the original does."""


@final
class UnorderedSum:
    """Adds pieces in the order of their arrival."""

    _TOGETHER = 8

    def __init__(self) -> None:
        self._pieces: list[Any] = []

    def add(self, place: int, piece: ShardSum | DeferredShardSum) -> None:
        self._pieces.append(piece)
        if len(self._pieces) == self._TOGETHER and isinstance(piece, ShardSum):
            self._pieces = [add_all(*self._pieces)]

    def copy(self) -> UnorderedSum:
        made = UnorderedSum()
        made._pieces = list(self._pieces)
        return made

    def total(self) -> ShardSum:
        first = self._pieces[0]
        if isinstance(first, DeferredShardSum):
            whole = add_sums([piece.sum for piece in self._pieces])
            assert isinstance(whole, DeferredSum)
            return whole.numerics(whole.params, whole.portions, whole.total).piece(first.shard)
        total: ShardSum = functools.reduce(add, self._pieces[1:], first)
        return total


@final
class OrderedSum:
    """Adds pieces in the order of their places 0, 1, 2, ..., and holds early pieces back."""

    def __init__(self) -> None:
        self._early: dict[int, ShardSum] = {}
        self._next = 0
        self._sum: ShardSum | None = None

    def add(self, place: int, piece: ShardSum) -> None:
        self._early[place] = piece
        while self._next in self._early:
            due = self._early.pop(self._next)
            self._sum = due if self._sum is None else add(self._sum, due)
            self._next += 1

    def copy(self) -> OrderedSum:
        made = OrderedSum()
        made._early, made._next, made._sum = dict(self._early), self._next, self._sum
        return made

    def total(self) -> ShardSum:
        assert self._sum is not None
        assert not self._early
        return self._sum
