"""Partitions a pytree of parameters into slices, one for each shard, balanced by bytes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from dbjax.model_parallel.sharding import Layout, Region, path_name
from dbjax.optim.elementwise import AbsentLeaf
from dbjax.parameter_server.abstract import AbstractSlice
from dbjax.types import Params, Slice, Slices

T = TypeVar("T")
Block = tuple[Region, Any]  # a region of an array, and the values there


def whole(shape: tuple[int, ...]) -> Region:
    """Returns the region that covers an array of this shape."""
    return tuple((0, n) for n in shape)


def numbers_in(region: Region | None) -> int:
    """Returns the number of elements of a region; 1 for None, the region of a scalar."""
    return math.prod(stop - start for start, stop in region or ())


def joined(blocks: Sequence[Block]) -> Any:
    """Joins blocks of one array, in whatever order they are given.

    Args:
      blocks: the blocks; together they cover a rectangular region, and each part of it once.

    Raises:
      ValueError: the blocks cannot be separated by straight cuts. This cannot happen to the blocks
        of a grid, nor if these are divided further.
    """
    if len(blocks) == 1:
        return blocks[0][1]
    for axis in range(len(blocks[0][0])):
        groups = _separated(blocks, axis)
        if len(groups) > 1:
            return jnp.concatenate([joined(group) for group in groups], axis=axis)
    raise ValueError(f"blocks {[region for region, _ in blocks]} do not make a grid")


def _separated(blocks: Sequence[Block], axis: int) -> list[list[Block]]:
    """Separates blocks into as many groups as possible that follow each other along an axis."""
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
    """A block of one leaf of the parameters.

    Attributes:
      name: the path of the leaf, followed by the region as one would index it, if any.
      leaf: the index of the leaf.
      region: the block's region of the leaf; None: the whole leaf.
      device: the index of the device that owns the block; 0 without model parallelism.
    """

    name: str
    leaf: int
    region: Region | None = None
    device: int = 0

    def of(self, leaf: Any) -> Any:
        """Returns the piece's values, given its leaf."""
        if self.region is None:
            return leaf
        begins, ends = zip(*self.region, strict=True)
        return jax.lax.slice(leaf, begins, ends)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Assigns every part of the parameters to a shard.

    `split` and `join` are pure functions that may be traced by jit.

    Attributes:
      treedef: the structure of the parameters.
      shards: the pieces of each shard; together they cover every leaf once, in order.
      absent: for each leaf, the node that replaces it in the trees of shards that do not hold it.
      complete: whether the shards hold all of the parameters (see `of_process`).
    """

    treedef: jax.tree_util.PyTreeDef
    shards: tuple[tuple[Piece, ...], ...]
    absent: tuple[AbsentLeaf, ...]
    complete: bool = True

    def of_process(self, process: int, processes: int) -> Partition:
        """Returns the part of the partition that one of a replica's processes fetches and pushes.

        Args:
          process: the index of the process.
          processes: the number of processes of a replica.
        """
        if processes == 1:
            return self
        shards = shards_of_process(self.shards, process, processes)
        return dataclasses.replace(self, shards=shards, complete=False)

    def split(self, tree: Params) -> Slices:
        """Splits a pytree into the shards' slices.

        Args:
          tree: a pytree with the structure of the parameters.

        Returns:
          A slice for each shard. A leaf that a single shard holds is passed on without a copy.
        """
        leaves = self.treedef.flatten_up_to(tree)
        return tuple({p.name: p.of(leaves[p.leaf]) for p in pieces} for pieces in self.shards)

    def join(self, slices: Sequence[Slice]) -> Params:
        """Inverts `split`: joins the shards' slices to a pytree.

        Args:
          slices: a slice for each shard.
        """
        found: dict[int, list[Block]] = {}
        for pieces, slice_ in zip(self.shards, slices, strict=True):
            for piece in pieces:
                values = slice_[piece.name]
                region = piece.region or whole(values.shape)
                found.setdefault(piece.leaf, []).append((region, values))
        return self.treedef.unflatten([joined(found[leaf]) for leaf in sorted(found)])

    def trees_of(self, slice_: Slice) -> tuple[Params, ...]:
        """Returns a slice as pytrees with the structure and the paths of the parameters.

        A leaf that the shard does not hold is an `AbsentLeaf`, which is an `optax.MaskedNode`:
        optax skips such nodes. A piece has the path of its leaf. With model parallelism, a shard
        may hold several blocks of one leaf; there is then one tree for each of them.
        """
        trees: list[list[Any]] = [list(self.absent) for _ in range(self.tree_count(slice_))]
        for name, values in slice_.items():
            number, leaf = self._places[name]
            trees[number][leaf] = values
        return tuple(map(self.treedef.unflatten, trees))

    def slice_from(self, trees: Sequence[Params], like: Slice) -> Slice:
        """Inverts `trees_of`.

        Args:
          trees: the trees of a slice.
          like: a slice whose pieces have the same names.
        """
        leaves = [self.treedef.flatten_up_to(tree) for tree in trees]
        places = {name: self._places[name] for name in like}
        return {name: leaves[number][leaf] for name, (number, leaf) in places.items()}

    def tree_count(self, slice_: Slice) -> int:
        """Returns the number of trees of a slice."""
        return 1 + max(self._places[name][0] for name in slice_)

    def held(self, shard: int) -> list[dict[int, Piece]]:
        """Returns the pieces in each tree of a shard's slice, by the index of their leaf."""
        trees: list[dict[int, Piece]] = []
        for piece in self.shards[shard]:
            number, leaf = self._places[piece.name]
            trees.extend({} for _ in range(number + 1 - len(trees)))
            trees[number][leaf] = piece
        return trees

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Maps each piece's name to the index of its tree in `trees_of`, and to its leaf."""
        places = {}
        for pieces in self.shards:
            held = collections.Counter[int]()
            for piece in pieces:
                places[piece.name] = held[piece.leaf], piece.leaf
                held[piece.leaf] += 1
        return places


def shards_of_process(of_shards: tuple[T, ...], process: int, processes: int) -> tuple[T, ...]:
    """Returns what belongs to the shards that hold the part of one of a replica's processes.

    Args:
      of_shards: something for each shard.
      process: the index of the process.
      processes: the number of processes of a replica, which divides the number of shards.
    """
    each = len(of_shards) // processes
    return of_shards[process * each : (process + 1) * each]


def partition_params(params: Params, shards: int, layout: Layout | None = None) -> Partition:
    """Partitions parameters into slices of equal size in bytes, to within one row of a leaf.

    Leaves keep their order. A leaf that crosses the border between two slices is split along its
    first axis that has at least `shards` elements; if there is none, along its longest axis.

    With a `layout`, the blocks of device 0 come first, then those of device 1, and so on; no piece
    belongs to two devices. If the numbers of shards and devices have a common divisor, each group
    of shards serves its own group of devices: each of 4 devices communicates only with its own 2 of
    8 shards, or shares one of 2 shards with another device. Slices are then equal within a group.

    If a replica spans several processes, each communicates only with its own shards.

    Paper: section 4.1, on reducing communication between shards and machines.

    Args:
      params: the parameters, a pytree of arrays or of their shapes and dtypes.
      shards: the number of slices, at least 1.
      layout: the regions of the parameters that each device of a replica holds; None: no model
        parallelism.

    Raises:
      ValueError: there are more shards than rows, a leaf is not an array, two leaves or pieces have
        the same name, or the shards cannot be divided among the processes of a replica.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    if shards < 1:
        raise ValueError(f"shards={shards} must be at least 1")
    for path, leaf in paths:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
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
    borders = _borders(sizes, [block.device for block in blocks], layout, shards)
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
    if layout is not None:
        _require_own_process(found, layout)
    absent = tuple(AbsentLeaf(leaf.shape, str(leaf.dtype)) for _, leaf in paths)
    return Partition(treedef, tuple(map(tuple, found)), absent)


def _require_own_process(shards: Sequence[Sequence[Piece]], layout: Layout) -> None:
    """Raises ValueError if a shard would hold pieces of another process than its own."""
    for index, pieces in enumerate(shards):
        own = index * layout.processes // len(shards)
        for piece in pieces:
            if layout.process(piece.device) != own:
                raise ValueError(
                    f"params/{piece.name} has no elements, so it is on no process of "
                    f"processes={layout.processes}; leave it out, or use processes=1"
                )


def _require_other_names(shards: Sequence[Sequence[Piece]]) -> None:
    """Raises ValueError if a leaf has the same name as a part of another leaf."""
    pieces = [piece for of_shard in shards for piece in of_shard]
    name, count = collections.Counter(piece.name for piece in pieces).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"params/{name} is also the name of a part of another leaf; give it another key"
        )


def is_absent(value: Any) -> bool:
    """Returns whether a node replaces a leaf that a shard does not hold (`Partition.trees_of`)."""
    return isinstance(value, optax.MaskedNode)


def slice_nbytes(slice_: Slice) -> int:
    """Returns the size of a slice, in bytes."""
    if isinstance(slice_, AbstractSlice):
        return slice_.nbytes
    return sum(value.size * value.dtype.itemsize for value in slice_.values())


@functools.lru_cache(maxsize=32)
def compiled_split(partition: Partition) -> Callable[[Params], Slices]:
    """Returns `Partition.split`, compiled once for equal partitions."""
    return jax.jit(partition.split)


@functools.lru_cache(maxsize=32)
def compiled_join(partition: Partition) -> Callable[[Sequence[Slice]], Params]:
    """Returns `Partition.join`, compiled once for equal partitions."""
    return jax.jit(partition.join)


def _blocks(shapes: dict[str, tuple[int, ...]], layout: Layout | None) -> list[Piece]:
    """Lists the blocks of each device, device by device; a replicated block appears once."""
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


def _borders(
    sizes: list[int], devices: list[int], layout: Layout | None, shards: int
) -> list[float]:
    """Returns where each shard begins and the last one ends, in bytes from the first block's start.

    Args:
      sizes: the size of each block, in bytes.
      devices: the index of the device that owns each block.
      layout: the layout of the blocks; None: no model parallelism.
      shards: the number of shards.
    """
    of_group = _group_sizes(sizes, devices, layout, shards)
    ends = itertools.accumulate(of_group, initial=0)
    each = shards // len(of_group)
    return [
        *(
            begin + (end - begin) * i / each
            for begin, end in itertools.pairwise(ends)
            for i in range(each)
        ),
        float(sum(sizes)),
    ]


def _group_sizes(
    sizes: list[int], devices: list[int], layout: Layout | None, shards: int
) -> list[int]:
    """Returns the sizes of groups of devices that have shards of their own, in bytes.

    There are as many groups as possible such that each holds something.

    Raises:
      ValueError: the processes of a replica cannot have shards of their own.
    """
    count, processes = (layout.devices, layout.processes) if layout else (1, 1)
    if shards % processes:
        raise ValueError(
            f"shards={shards} must be a multiple of processes={processes}: each process of a "
            "replica has shards of its own"
        )
    of_group: list[int] = []
    for groups in (math.gcd(shards, count), processes):
        of_group = [0] * groups
        for size, device in zip(sizes, devices, strict=True):
            of_group[device * groups // count] += size
        if all(of_group):
            return of_group
    if processes == 1:  # there are only empty leaves
        return of_group
    raise ValueError(
        f"processes={processes}: process {of_group.index(0)} of a replica would hold no "
        "parameters; use fewer"
    )


def _split(block: Piece, begin: int, size: int, borders: list[float]) -> list[tuple[int, Piece]]:
    """Splits a block that occupies the bytes from `begin` to `begin + size` at the borders.

    Returns:
      A pair (shard, piece) for each shard that the block extends into.
    """
    shards, region = len(borders) - 1, block.region or ()
    lengths = [stop - start for start, stop in region]
    long_axes = [axis for axis, length in enumerate(lengths) if length >= shards]
    axis = (
        long_axes[0] if long_axes else max(range(len(lengths)), key=lambda a: lengths[a], default=0)
    )
    rows = lengths[axis] if lengths else 1
    ends = [0, *(_row(b, begin, size, rows) for b in borders[1:-1]), rows]
    partition = [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(ends)) if a < b]
    if len(partition) <= 1:  # not split; an empty leaf needs a shard, too
        last = next(i for i in range(shards) if borders[i + 1] >= begin)
        return [(partition[0][0] if partition else last, block)]
    first = region[axis][0]
    return [
        (i, dataclasses.replace(block, region=_with(region, axis, (first + a, first + b))))
        for i, a, b in partition
    ]


def _row(border: float, begin: int, size: int, rows: int) -> int:
    """Returns the row nearest to a border, which is in bytes from the first block's start."""
    return min(rows, max(0, round((border - begin) / size * rows))) if size else 0


def _with(region: Region, axis: int, interval: tuple[int, int]) -> Region:
    return (*region[:axis], interval, *region[axis + 1 :])


def _named(piece: Piece, shape: tuple[int, ...]) -> Piece:
    """Adds the region to a piece's name, written as one would index the leaf."""
    if piece.region == whole(shape):
        return dataclasses.replace(piece, region=None)
    parts = [
        ":" if interval == (0, n) else "{}:{}".format(*interval)
        for interval, n in zip(piece.region or (), shape, strict=True)
    ]
    while parts[-1] == ":":
        parts.pop()
    return dataclasses.replace(piece, name=f"{piece.name}[{','.join(parts)}]")
