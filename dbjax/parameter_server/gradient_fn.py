"""The gradient of a replica's mini-batches, of parameters that are cut across shards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from dbjax.model_parallel.sharding import Layout, ModelSharding, Region, path_name
from dbjax.parameter_server.partition import Partition, joined, numbers_in, whole
from dbjax.types import Batch, LossFn, Params, Slices, loss_of


@final
class GradientFn:
    """(slices, batch) -> (loss, slices of its gradient), compiled once for equal partitions.

    Cut leaves are joined, and their gradients cut, inside the compiled program: what travels are
    the shards' own arrays.

    Args:
      slices: their shapes and types, and those of a batch.
      on_devices: of a replica that is cut over devices; None: it is not.
    """

    def __init__(
        self,
        loss: LossFn,
        partition: Partition,
        slices: Slices,
        batch: Batch,
        on_devices: PartitionedGradientFn | None,
    ) -> None:
        self._made_of = (loss, partition, slices, batch, on_devices)
        self._compute = on_devices or _compiled(loss, partition)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is compiled anew."""
        return GradientFn, self._made_of

    def __call__(self, slices: Slices, batch: Batch) -> tuple[jax.Array, Slices]:
        found: tuple[jax.Array, Slices] = self._compute(slices, batch)
        return found

    def lower(self, slices: Slices, batch: Batch) -> jax.stages.Lowered:
        """The program of `__call__`."""
        return self._compute.lower(slices, batch)

    def compile_ahead(self) -> None:
        """For such slices and batches."""
        _, _, slices, batch, on_devices = self._made_of
        if on_devices:
            on_devices.compile_ahead(slices, batch)
        else:
            self.lower(slices, batch).compile()


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn, partition: Partition) -> jax.stages.Wrapped:
    of_batch = jax.value_and_grad(functools.partial(loss_of, loss))

    @jax.jit
    def value_and_grad(slices: Slices, batch: Any) -> tuple[jax.Array, Slices]:
        value, gradient = of_batch(partition.join(slices), batch)
        return value, partition.split(gradient)

    return value_and_grad


Blocks = dict[str, jax.Array]  # a device's part of every parameter, padded; by the parameter's path
Pieces = dict[str, jax.Array]  # by the piece's name


class HeldPiece(NamedTuple):
    """A piece that a device holds."""

    shard: int
    name: str
    leaf: str  # the path of its parameter
    region: Region


@final
class PartitionedGradientFn:
    """(slices, batch) -> (loss, slices of its gradient), on the devices of one replica.

    Args:
      params: of the whole network; only shapes and types are looked at.
      devices: as many as the cut has.
    """

    def __init__(
        self, sharding: ModelSharding, params: Params, partition: Partition, devices: Sequence[Any]
    ) -> None:
        self.sharding, self.partition, self._params = sharding, partition, shapes_of(params)
        self._mesh = sharding.mesh(devices)
        self._devices = tuple(devices[: sharding.devices])
        self._abstract = sharding.abstract(params, self._mesh)
        layout = Layout(sharding, params)
        self.held = pieces_held(partition, layout)
        dtypes = {path_name(p): leaf.dtype for p, leaf in jax.tree.leaves_with_path(self._abstract)}
        self._place = [  # on the device, also where it holds nothing but padding
            jax.jit(
                functools.partial(_blocks_of, pieces, layout, dtypes),
                out_shardings=SingleDeviceSharding(device),
            )
            for pieces, device in zip(self.held, self._devices, strict=True)
        ]
        self._take = [
            jax.jit(functools.partial(_pieces_of, pieces, layout, device))
            for device, pieces in enumerate(self.held)
        ]
        self._compute = sharding.value_and_grad(params, self._mesh)
        self._lowered: dict[Any, jax.stages.Lowered] = {}
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._turn = threading.Lock()  # replicas that share devices take turns on them

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: on the devices that are there."""
        return _on_devices_here, (self.sharding, self._params, self.partition)

    def __call__(self, slices: Slices, batch: Batch) -> tuple[jax.Array, Slices]:
        home = jnp.asarray(next(iter(slices[0].values()))).sharding
        params = self.fetched(slices)
        with self._turn:
            program = self.lower(slices, batch).compile()
            loss, gradient = program(params, jax.device_put(batch, self._replicated))
            jax.block_until_ready(loss)
        return jax.device_put(loss.addressable_data(0), home), self.pushed(gradient, home)

    def compile_ahead(self, slices: Slices, batch: Batch) -> None:
        """The program of all devices, and what each does before and after it."""
        self.lower(slices, batch).compile()
        parts = zip(self.held, self._place, self._take, self._devices, strict=True)
        for pieces, place, take, device in parts:
            on = SingleDeviceSharding(device)

            def like(shape: Any, dtype: Any, on: Any = on) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct(shape, dtype, sharding=on)

            of_shards = {p.name: slices[p.shard][p.name] for p in pieces}
            place.lower({n: like(p.shape, p.dtype) for n, p in of_shards.items()}).compile()
            leaves = jax.tree_util.tree_leaves_with_path(self._abstract)
            blocks = {
                path_name(path): like(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
                for path, leaf in leaves
            }
            take.lower(blocks).compile()

    def fetched(self, slices: Slices) -> Params:
        """The padded parameters on the mesh: to each device its own pieces are sent."""
        blocks = [
            place(jax.device_put({p.name: slices[p.shard][p.name] for p in pieces}, device))
            for pieces, place, device in zip(self.held, self._place, self._devices, strict=True)
        ]

        def array(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            parts = [block[path_name(path)] for block in blocks]
            return jax.make_array_from_single_device_arrays(like.shape, like.sharding, parts)

        return jax.tree_util.tree_map_with_path(array, self._abstract)

    def pushed(self, gradient: Params, home: Any) -> Slices:
        """The gradient's pieces, where the shards are: from each device those it owns."""
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        blocks: dict[Any, Blocks] = {device: {} for device in self._devices}
        for path, leaf in leaves:
            for shard in leaf.addressable_shards:
                blocks[shard.device][path_name(path)] = shard.data
        found: Pieces = {}
        for device, take in zip(self._devices, self._take, strict=True):
            found |= jax.device_put(take(blocks[device]), home)
        return tuple({p.name: found[p.name] for p in pieces} for pieces in self.partition.shards)

    def lower(self, slices: Slices, batch: Batch) -> jax.stages.Lowered:
        """The program of all devices, for batches of this shape; nothing is allocated.

        Compiled at most once, whoever asks for it.
        """
        del slices  # their shapes are known
        leaves, structure = jax.tree.flatten(batch)
        key = (structure, *((x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for x in leaves))
        if key not in self._lowered:
            like = [jax.ShapeDtypeStruct(*key_, sharding=self._replicated) for key_ in key[1:]]
            batch_like = jax.tree.unflatten(structure, like)
            self._lowered[key] = self._compute.lower(self._abstract, batch_like)
        return self._lowered[key]


def shapes_of(params: Params) -> Params:
    """Shapes and types, without the values."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)


def _on_devices_here(
    sharding: ModelSharding, params: Params, partition: Partition
) -> PartitionedGradientFn:
    return PartitionedGradientFns(sharding, params, partition).of(0)


def pieces_held(partition: Partition, layout: Layout) -> list[tuple[HeldPiece, ...]]:
    """For each device the pieces that make up its blocks."""
    names = list(layout.shapes)
    pieces = [
        (HeldPiece(shard, piece.name, names[piece.leaf], region), piece.device)
        for shard, of_shard in enumerate(partition.shards)
        for piece in of_shard
        for region in [piece.region or whole(layout.shapes[names[piece.leaf]])]
    ]
    return [
        tuple(
            piece
            for piece, owner in pieces
            if owner == device
            or (
                not layout.owns(piece.leaf, device)
                and _within(piece.region, layout.region(piece.leaf, device))
            )
        )
        for device in range(layout.devices)
    ]


def _blocks_of(
    held: tuple[HeldPiece, ...], layout: Layout, dtypes: dict[str, Any], pieces: Pieces
) -> Blocks:
    """A device's blocks, with their padding, of the pieces it holds."""
    found: dict[str, list[tuple[Region, Any]]] = {name: [] for name in layout.shapes}
    for piece in held:
        found[piece.leaf].append((piece.region, pieces[piece.name]))
    return {
        name: _padded(parts, layout.block_shape(name), dtypes[name])
        for name, parts in found.items()
    }


def _padded(parts: list[tuple[Region, Any]], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if not parts:
        return jnp.zeros(shape, dtype)
    block: jax.Array = joined(parts)
    if block.shape == shape:
        return block
    return jnp.pad(block, [(0, n - has) for n, has in zip(shape, block.shape, strict=True)])


def _pieces_of(held: tuple[HeldPiece, ...], layout: Layout, device: int, blocks: Blocks) -> Pieces:
    """The pieces that a device owns, of its blocks of the gradient."""
    found = {}
    for piece in held:
        if layout.owns(piece.leaf, device):
            corner = [start for start, _ in layout.region(piece.leaf, device)]
            begins = [a - c for (a, _), c in zip(piece.region, corner, strict=True)]
            ends = [b - c for (_, b), c in zip(piece.region, corner, strict=True)]
            found[piece.name] = jax.lax.slice(blocks[piece.leaf], begins, ends)
    return found


def _within(inner: Region, outer: Region) -> bool:
    return all(a >= c and b <= d for (a, b), (c, d) in zip(inner, outer, strict=True))


@final
class PartitionedGradientFns:
    """The gradient functions of replicas that are cut over devices, compiled once for each set."""

    def __init__(self, sharding: ModelSharding, params: Params, partition: Partition) -> None:
        self._cut, self._params, self._cuts = sharding, shapes_of(params), partition
        self._made: dict[int, PartitionedGradientFn] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process each is made anew, on the devices that are there."""
        return PartitionedGradientFns, (self._cut, self._params, self._cuts)

    def report(self) -> dict[str, int]:
        """What each device of a replica holds, and talks to: the most, over devices."""
        holds = pieces_held(self._cuts, Layout(self._cut, self._params))
        sizes = {
            path_name(path): leaf.dtype.itemsize
            for path, leaf in jax.tree_util.tree_leaves_with_path(self._params)
        }
        fetched = [sum(numbers_in(p.region) * sizes[p.leaf] for p in pieces) for pieces in holds]
        return {
            "count": self._cut.devices,
            "shards_each": max(len({p.shard for p in pieces}) for pieces in holds),
            "fetched_bytes_each": max(fetched),
        }

    def of(self, replica: int) -> PartitionedGradientFn:
        """On devices of its own; where there are too few, replicas share them in turn."""
        devices, size = jax.local_devices(), self._cut.devices
        group = replica % max(1, len(devices) // size)
        if group not in self._made:
            mine = devices[group * size : (group + 1) * size]
            self._made[group] = PartitionedGradientFn(self._cut, self._params, self._cuts, mine)
        return self._made[group]
