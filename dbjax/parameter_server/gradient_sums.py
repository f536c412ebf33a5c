"""Gradients summed over portions of the data, at one set of parameters.

A sum over portions does not depend on how they are grouped, but for rounding. So whoever
models time (`dbjax.runtime.virtual`) may put the arithmetic off, and do it for all replicas
in a few large programs once somebody looks at the sum: `DeferredSum`.
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
    """What one shard gets of a sum: the loss, scalar, and its slice of the gradient."""

    loss: jax.Array
    gradient: Slice


class GradientSum(NamedTuple):
    """Loss and gradient summed over portions, each portion weighted as it was asked for."""

    loss: jax.Array
    gradient: Slices

    def piece(self, shard: int) -> ShardSum:
        return ShardSum(self.loss, self.gradient[shard])


Numerics = Callable[[Slices, tuple[int, ...], int], GradientSum]


@final
class DeferredSum:
    """A `GradientSum` that is computed when it is looked at, together with those it was added to."""

    __slots__ = ("numerics", "params", "portions", "total")

    def __init__(
        self, numerics: Numerics, params: Slices, portions: tuple[int, ...], total: int
    ) -> None:
        self.numerics, self.params, self.portions, self.total = numerics, params, portions, total

    def piece(self, shard: int) -> DeferredShardSum:
        return DeferredShardSum(self, shard)


class DeferredShardSum(NamedTuple):
    """What one shard will get of a deferred sum."""

    sum: DeferredSum
    shard: int


def add_sums(sums: Sequence[GradientSum | DeferredSum]) -> GradientSum | DeferredSum:
    """The sum of sums, in order.

    Raises:
      RuntimeError: they are deferred, and at different parameters.
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
    """Of two copies of a shard, that have made the same arrays each for itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x is y or np.array_equal(x, y) for x, y in pairs)


@jax.jit
def add(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y, a, b)


@jax.jit
def add_all(first: Any, *others: Any) -> Any:
    """In order, in one pass over memory."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


@final
class GradientSums:
    """The numerics of `DeferredSum` and of replicas: (slices, portions, total) -> `GradientSum`.

    Args:
      loss: (params, batch) -> mean over the batch.
      gather: portions -> their examples, one after another.
      size_of: portions -> how many examples.
      together: portions that are computed in one program at most, where they are put off.
      like: shapes and types of the slices, to compile ahead.
      on_devices: the gradient of a replica that is cut over devices; None: it is not.
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
        """In another process it is compiled anew."""
        return GradientSums, self._made_of

    def compile_ahead(self) -> None:
        """What replicas compute of a whole portion."""
        self.lower(self._like, (0,), 1).compile()

    def __call__(self, slices: Slices, portions: tuple[int, ...], total: int) -> GradientSum:
        """Each example counts 1 / total."""
        weight = self._size_of(portions) / total
        found: GradientSum = self._of_slices(slices, self._gather(portions), weight)
        return found

    def work(self, slices: Slices, portions: tuple[int, ...], total: int) -> int:
        """What its costs depend on."""
        return self._size_of(portions)

    def lower(self, slices: Slices, portions: tuple[int, ...], total: int) -> jax.stages.Lowered:
        """The program of `__call__`."""
        return self._of_slices.lower(slices, self._gather(portions), 1.0)

    def all_at_once(self, slices: Slices, portions: tuple[int, ...], total: int) -> GradientSum:
        """In order of the portions, as many at once as may be; all shards ask for the same."""
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
    """As the `GradientSums` it is made of, put off."""

    def __init__(self, sums: GradientSums) -> None:
        self._sums, self.work, self.lower = sums, sums.work, sums.lower

    def __call__(self, slices: Slices, portions: tuple[int, ...], total: int) -> DeferredSum:
        return DeferredSum(self._sums.all_at_once, slices, portions, total)


@final
class _Weighted:
    """As `_compiled`, of a replica that is cut over devices."""

    def __init__(self, gradient_fn: PartitionedGradientFn) -> None:
        self._gradient_fn = gradient_fn

    def __call__(self, slices: Slices, batch: Batch, weight: float) -> GradientSum:
        weighted: GradientSum = _times(GradientSum(*self._gradient_fn(slices, batch)), weight)
        return weighted

    def lower(self, slices: Slices, batch: Batch, weight: float) -> jax.stages.Lowered:
        """The program of the devices; the product with the weight is left out."""
        return self._gradient_fn.lower(slices, batch)


@jax.jit
def _times(mean: GradientSum, weight: float) -> Any:
    return jax.tree.map(lambda x: weight * x, mean)


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn, partition: Partition | None) -> jax.stages.Wrapped:
    """(parameters, batch, weight) -> the sum; both cut as the partition is, if there is one."""

    @jax.jit
    def compute(params: Any, batch: Batch, weight: float) -> GradientSum:
        def weighted(params: Any) -> jax.Array:
            whole = params if partition is None else partition.join(params)
            return weight * loss_of(loss, whole, batch)

        return GradientSum(*jax.value_and_grad(weighted)(params))

    return compute


def _chunks(portions: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Chunks of `most`, then of halves, quarters, ...: few sizes, so that little is compiled."""
    chunks, begin, size = [], 0, most
    while begin < len(portions):
        if size <= len(portions) - begin:
            chunks.append(portions[begin : begin + size])
            begin += size
        else:
            size = max(1, size // 2)
    return chunks


class SumAccumulator(Protocol):
    """Adds up the pieces of one shard."""

    def add(self, place: int, piece: Any) -> None: ...

    def total(self) -> ShardSum:
        """Of all pieces that were added."""

    def copy(self) -> SumAccumulator:
        """With what was added so far; the original may go on."""


@final
class UnorderedSum:
    """Adds pieces as they come."""

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
    """Adds pieces in the order of their places 0, 1, 2, ...; keeps what comes early."""

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
