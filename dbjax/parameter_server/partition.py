"""Cutting a pytree of parameters into slices, one for each shard, balanced by bytes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dbjax.model_parallel.sharding import Layout, Region, path_name
from dbjax.optim.elementwise import AbsentLeaf
from dbjax.types import Params, Slice, Slices

Block = tuple[Region, Any]  # where it lies in an array, and its values


def whole(shape: tuple[int, ...]) -> Region:
    """The region that is all of an array."""
    return tuple((0, n) for n in shape)


def numbers_in(region: Region | None) -> int:
    """How many numbers a region has."""
    return math.prod(stop - start for start, stop in region or ())


def joined(blocks: Sequence[Block]) -> Any:
    """Blocks of one array put together, wherever they came from.

    Raises:
      ValueError: no straight cut separates them; blocks of a grid, cut further, never do that.
    """
    if len(blocks) == 1:
        return blocks[0][1]
    for axis in range(len(blocks[0][0])):
        groups = _separated(blocks, axis)
        if len(groups) > 1:
            return jnp.concatenate([joined(group) for group in groups], axis=axis)
    raise ValueError(f"blocks {[region for region, _ in blocks]} do not make a grid")


def _separated(blocks: Sequence[Block], axis: int) -> list[list[Block]]:
    """Groups that follow each other along an axis, as many as there are."""
    groups: list[list[Block]] = []
    end = -1
    for block in sorted(blocks, key=lambda b: b[0][axis]):
        begin, stop = block[0][axis]
        if begin >= end:
            groups.append([])
        groups[-1].append(block)
        end = max(end, stop)
    return groups


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of one leaf; `region` None: the whole leaf.

    Attributes:
      device: of a replica cut over several, the one that holds it; 0 of a replica that is not.
    """

    name: str
    leaf: int
    region: Region | None = None
    device: int = 0

    def of(self, leaf: Any) -> Any:
        if self.region is None:
            return leaf
        begins, ends = zip(*self.region, strict=True)
        return jax.lax.slice(leaf, begins, ends)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which shard holds what. `split` and `join` are pure and may be traced by jit.

    Attributes:
      treedef: structure of the parameters.
      shards: for each shard its pieces; together they are every leaf once, in order.
      absent: what stands for each leaf where a shard does not hold it.
    """

    treedef: jax.tree_util.PyTreeDef
    shards: tuple[tuple[Piece, ...], ...]
    absent: tuple[AbsentLeaf, ...]

    def split(self, tree: Params) -> Slices:
        """The slice of each shard; leaves that are not cut are passed on, not copied."""
        leaves = self.treedef.flatten_up_to(tree)
        return tuple({p.name: p.of(leaves[p.leaf]) for p in pieces} for pieces in self.shards)

    def join(self, slices: Sequence[Slice]) -> Params:
        """The inverse of `split`."""
        found: dict[int, list[Block]] = {}
        for pieces, slice_ in zip(self.shards, slices, strict=True):
            for piece in pieces:
                values = slice_[piece.name]
                region = piece.region or whole(values.shape)
                found.setdefault(piece.leaf, []).append((region, values))
        return self.treedef.unflatten([joined(found[leaf]) for leaf in sorted(found)])

    def trees_of(self, slice_: Slice) -> tuple[Params, ...]:
        """A slice as pytrees with the structure and the paths of the parameters.

        Leaves that the shard does not hold are `AbsentLeaf`, an `optax.MaskedNode`, which is how
        optax leaves leaves out. A leaf keeps its path when it is cut. A shard may hold several
        blocks of one leaf, where replicas are partitioned over devices; it then has one tree for
        each.
        """
        trees: list[list[Any]] = [list(self.absent) for _ in range(self.tree_count(slice_))]
        for name, values in slice_.items():
            number, leaf = self._places[name]
            trees[number][leaf] = values
        return tuple(map(self.treedef.unflatten, trees))

    def slice_from(self, trees: Sequence[Params], like: Slice) -> Slice:
        """The inverse of `trees_of`; `like` has the names of the slice's pieces."""
        leaves = [self.treedef.flatten_up_to(tree) for tree in trees]
        places = {name: self._places[name] for name in like}
        return {name: leaves[number][leaf] for name, (number, leaf) in places.items()}

    def tree_count(self, slice_: Slice) -> int:
        """How many trees a slice has."""
        return 1 + max(self._places[name][0] for name in slice_)

    def held(self, shard: int) -> list[dict[int, Piece]]:
        """The trees of a shard's slice, as the pieces that they hold by leaf."""
        trees: list[dict[int, Piece]] = []
        for piece in self.shards[shard]:
            number, leaf = self._places[piece.name]
            trees.extend({} for _ in range(number + 1 - len(trees)))
            trees[number][leaf] = piece
        return trees

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """For each piece's name the number of its tree, in `trees_of`, and its leaf."""
        places = {}
        for pieces in self.shards:
            held = collections.Counter[int]()
            for piece in pieces:
                places[piece.name] = held[piece.leaf], piece.leaf
                held[piece.leaf] += 1
        return places


def partition_params(params: Params, shards: int, layout: Layout | None = None) -> Partition:
    """Cuts `params` into `shards` slices of equal size, to within one row of a leaf.

    Leaves keep their order. One that crosses a border is cut along its first axis that
    is at least `shards` long, else along its longest.

    With a `layout` all that is device 0's comes first, then device 1's, and so on, and no
    piece belongs to two. Where shards and devices have a common divisor, each group of shards
    has a group of devices to itself: of 4 devices each talks only to its own 2 of 8 shards, or
    shares one of 2 (section 4.1). Slices are then equal within a group.

    Raises:
      ValueError: there are fewer rows than shards, or a leaf is no array.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    if shards < 1:
        raise ValueError(f"shards={shards} must be at least 1")
    for path, leaf in paths:
        if not hasattr(leaf, "nbytes") or not hasattr(leaf, "shape"):
            raise ValueError(
                f"params/{path_name(path)} is a {type(leaf).__name__}; make it an array"
            )
    names = collections.Counter(path_name(path) for path, _ in paths)
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"params/{name} is the path of {count} leaves; give them other keys")
    blocks = _blocks({path_name(path): leaf.shape for path, leaf in paths}, layout)
    width = [leaf.dtype.itemsize for _, leaf in paths]
    sizes = [numbers_in(piece.region) * width[piece.leaf] for piece in blocks]
    count = layout.devices if layout else 1
    borders = _borders(sizes, [block.device for block in blocks], count, shards)
    found: list[list[Piece]] = [[] for _ in range(shards)]
    begins = itertools.accumulate(sizes, initial=0)
    for begin, size, block in zip(begins, sizes, blocks, strict=False):
        for shard, piece in _split(block, begin, size, borders):
            shape = paths[piece.leaf][1].shape
            found[shard].append(_named(piece, shape))
    empty = [i for i, pieces in enumerate(found) if not pieces]
    if empty:
        raise ValueError(
            f"shards={shards} is too many for these parameters: {len(empty)} would hold nothing"
        )
    _require_other_names(found)
    absent = tuple(AbsentLeaf(leaf.shape, str(leaf.dtype)) for _, leaf in paths)
    return Partition(treedef, tuple(map(tuple, found)), absent)


def _require_other_names(shards: Sequence[Sequence[Piece]]) -> None:
    """Raises ValueError if a leaf's own name is that of a part of another leaf."""
    pieces = [piece for of_shard in shards for piece in of_shard]
    name, count = collections.Counter(piece.name for piece in pieces).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"params/{name} is also the name of a part of another leaf; give it another key"
        )


def is_absent(value: Any) -> bool:
    """Whether a node stands for a leaf that a shard does not hold (`Partition.trees_of`)."""
    return isinstance(value, optax.MaskedNode)


def slice_nbytes(slice_: Slice) -> int:
    """How many bytes a slice holds."""
    return sum(value.size * value.dtype.itemsize for value in slice_.values())


@functools.lru_cache(maxsize=32)
def compiled_split(partition: Partition) -> Callable[[Params], Slices]:
    """`Partition.split`, compiled once for equal partitions."""
    return jax.jit(partition.split)


@functools.lru_cache(maxsize=32)
def compiled_join(partition: Partition) -> Callable[[Sequence[Slice]], Params]:
    """`Partition.join`, compiled once for equal partitions."""
    return jax.jit(partition.join)


def _blocks(shapes: dict[str, tuple[int, ...]], layout: Layout | None) -> list[Piece]:
    """What each device holds of each leaf, device by device; what several hold, once."""
    if layout is None:
        return [Piece(name, i, whole(shape)) for i, (name, shape) in enumerate(shapes.items())]
    return [
        Piece(name, i, region, device)
        for device in range(layout.devices)
        for i, name in enumerate(shapes)
        if layout.owns(name, device)
        for region in [layout.region(name, device)]
        if numbers_in(region) or not all(shapes[name])
    ]


def _borders(sizes: list[int], devices: list[int], count: int, shards: int) -> list[float]:
    """Where each shard begins and the last one ends, in bytes from the first block's beginning.

    Args:
      sizes: of the blocks, in bytes.
      devices: of `count`, whose each block is.
    """
    groups = math.gcd(shards, count)
    of_group = [0] * groups
    for size, device in zip(sizes, devices, strict=True):
        of_group[device * groups // count] += size
    if not all(of_group):  # some devices hold nothing
        groups, of_group = 1, [sum(sizes)]
    ends = itertools.accumulate(of_group, initial=0)
    each = shards // groups
    return [
        *(
            begin + (end - begin) * i / each
            for begin, end in itertools.pairwise(ends)
            for i in range(each)
        ),
        float(sum(sizes)),
    ]


def _split(block: Piece, begin: int, size: int, borders: list[float]) -> list[tuple[int, Piece]]:
    """(shard, piece) for each shard that the bytes begin .. begin + size fall into."""
    shards, region = len(borders) - 1, block.region or ()
    lengths = [stop - start for start, stop in region]
    long_axes = [axis for axis, length in enumerate(lengths) if length >= shards]
    axis = (
        long_axes[0] if long_axes else max(range(len(lengths)), key=lambda a: lengths[a], default=0)
    )
    rows = lengths[axis] if lengths else 1
    ends = [0, *(_row(b, begin, size, rows) for b in borders[1:-1]), rows]
    partition = [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(ends)) if a < b]
    if len(partition) <= 1:  # whole, and an empty leaf belongs to someone too
        last = next(i for i in range(shards) if borders[i + 1] >= begin)
        return [(partition[0][0] if partition else last, block)]
    first = region[axis][0]
    return [
        (i, dataclasses.replace(block, region=_with(region, axis, (first + a, first + b))))
        for i, a, b in partition
    ]


def _row(border: float, begin: int, size: int, rows: int) -> int:
    """The row nearest to a border, given in bytes from the first leaf's beginning."""
    return min(rows, max(0, round((border - begin) / size * rows))) if size else 0


def _with(region: Region, axis: int, interval: tuple[int, int]) -> Region:
    return (*region[:axis], interval, *region[axis + 1 :])


def _named(piece: Piece, shape: tuple[int, ...]) -> Piece:
    """With a name that says which part of its leaf it is, as one would index it."""
    if piece.region == whole(shape):
        return dataclasses.replace(piece, region=None)
    parts = [
        ":" if interval == (0, n) else "{}:{}".format(*interval)
        for interval, n in zip(piece.region or (), shape, strict=True)
    ]
    while parts[-1] == ":":
        parts.pop()
    return dataclasses.replace(piece, name=f"{piece.name}[{','.join(parts)}]")
