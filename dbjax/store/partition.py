"""Cutting a pytree of parameters into slices, one for each shard, balanced by bytes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dbjax.types import Params, Slice, Slices


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop`, along `axis`, of one leaf; `axis` None: the whole leaf."""

    name: str
    leaf: int
    axis: int | None = None
    start: int = 0
    stop: int = 0

    def of(self, leaf: Any) -> Any:
        if self.axis is None:
            return leaf
        return jax.lax.slice_in_dim(leaf, self.start, self.stop, axis=self.axis)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which shard holds what. `split` and `join` are pure and may be traced by jit.

    Attributes:
      treedef: structure of the parameters.
      shards: for each shard its pieces; together they are every leaf once, in order.
    """

    treedef: jax.tree_util.PyTreeDef
    shards: tuple[tuple[Piece, ...], ...]

    def split(self, tree: Params) -> Slices:
        """The slice of each shard; leaves that are not cut are passed on, not copied."""
        leaves = self.treedef.flatten_up_to(tree)
        return tuple({p.name: p.of(leaves[p.leaf]) for p in pieces} for pieces in self.shards)

    def join(self, slices: Sequence[Slice]) -> Params:
        """The inverse of `split`."""
        found: dict[int, list[tuple[Piece, Any]]] = {}
        for pieces, slice_ in zip(self.shards, slices, strict=True):
            for piece in pieces:
                found.setdefault(piece.leaf, []).append((piece, slice_[piece.name]))
        return self.treedef.unflatten([_joined(found[leaf]) for leaf in sorted(found)])


def partition(params: Params, shards: int) -> Partition:
    """Cuts `params` into `shards` slices of equal size, to within one row of a leaf.

    Leaves keep their order. One that crosses a border is cut along its first axis that
    is at least `shards` long, else along its longest.

    Raises:
      ValueError: there are fewer rows than shards, or a leaf is no array.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    if shards < 1:
        raise ValueError(f"shards={shards} must be at least 1")
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in paths
    ]
    for name, (_, leaf) in zip(names, paths, strict=True):
        if not hasattr(leaf, "nbytes") or not hasattr(leaf, "shape"):
            raise ValueError(f"params/{name} is a {type(leaf).__name__}; make it a jax array")
    sizes = [leaf.nbytes for _, leaf in paths]
    borders = [sum(sizes) * i / shards for i in range(shards + 1)]
    found: list[list[Piece]] = [[] for _ in range(shards)]
    begins = itertools.accumulate(sizes, initial=0)
    for index, (begin, size, (_, leaf)) in enumerate(zip(begins, sizes, paths, strict=False)):
        for shard, piece in _cut(names[index], index, leaf.shape, begin, size, borders):
            found[shard].append(piece)
    empty = [i for i, pieces in enumerate(found) if not pieces]
    if empty:
        raise ValueError(
            f"shards={shards} is too many for these parameters: {len(empty)} would hold nothing"
        )
    return Partition(treedef, tuple(map(tuple, found)))


def slice_nbytes(slice_: Slice) -> int:
    """How many bytes a slice holds."""
    return sum(value.nbytes for value in slice_.values())


@functools.lru_cache(maxsize=32)
def compiled_split(cuts: Partition) -> Callable[[Params], Slices]:
    """`Partition.split`, compiled once for equal partitions."""
    return jax.jit(cuts.split)


@functools.lru_cache(maxsize=32)
def compiled_join(cuts: Partition) -> Callable[[Sequence[Slice]], Params]:
    """`Partition.join`, compiled once for equal partitions."""
    return jax.jit(cuts.join)


def _cut(
    name: str, leaf: int, shape: tuple[int, ...], begin: int, size: int, borders: list[float]
) -> list[tuple[int, Piece]]:
    """(shard, piece) for each shard that the bytes begin .. begin + size fall into."""
    shards = len(borders) - 1
    long_axes = [axis for axis, length in enumerate(shape) if length >= shards]
    axis = long_axes[0] if long_axes else max(range(len(shape)), key=lambda a: shape[a], default=0)
    rows = shape[axis] if shape else 1
    ends = [0, *(_row(b, begin, size, rows) for b in borders[1:-1]), rows]
    cuts = [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(ends)) if a < b]
    if len(cuts) <= 1:  # whole, and an empty leaf belongs to someone too
        whole = cuts[0][0] if cuts else next(i for i in range(shards) if borders[i + 1] >= begin)
        return [(whole, Piece(name, leaf))]
    return [(i, Piece(f"{name}[{a}:{b}]", leaf, axis, a, b)) for i, a, b in cuts]


def _row(border: float, begin: int, size: int, rows: int) -> int:
    """The row nearest to a border, given in bytes from the first leaf's beginning."""
    return min(rows, max(0, round((border - begin) / size * rows))) if size else 0


def _joined(pieces: list[tuple[Piece, Any]]) -> Any:
    axis = pieces[0][0].axis
    if axis is None:
        return pieces[0][1]
    return jnp.concatenate([values for _, values in pieces], axis=axis)
