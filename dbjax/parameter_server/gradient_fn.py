"""The gradient function of a replica, on parameters that are partitioned across shards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from dbjax.model_parallel.sharding import Layout, ModelSharding, Region, path_name
from dbjax.parameter_server.partition import Partition, joined, numbers_in, whole
from dbjax.runtime.joint import (
    joint_computation,
    joint_devices,
    least,
    require_same_program,
)
from dbjax.types import Batch, Gradient, LossFn, Params, Slices, loss_of


@final
class GradientFn:
    """Computes (slices, batch) -> (loss, slices of its gradient).

    It is compiled once for equal partitions. The compiled program joins the pieces of a leaf and
    splits its gradient, so that only the shards' own arrays are sent.

    Args:
      loss: (params, batch) -> the loss, a scalar.
      partition: the partition of the parameters into slices.
      slices: slices with the shapes and dtypes of the parameters.
      batch: a batch with the shapes and dtypes of all batches.
      on_devices: the gradient function of a model-parallel replica; None: no model parallelism.
    """

    def __init__(
        self,
        loss: LossFn,
        partition: Partition,
        slices: Slices,
        batch: Batch,
        on_devices: PartitionedGradientFn | SpanningGradientFn | None,
    ) -> None:
        self._made_of = (loss, partition, slices, batch, on_devices)
        self._compute: Any = on_devices or compiled_gradient(loss, partition)

    @property
    def program(self) -> Any:
        """The jitted function, which is the same object for equal losses and partitions."""
        return self._compute

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments; another process compiles the function again."""
        return GradientFn, self._made_of

    def __call__(self, slices: Slices, batch: Batch) -> tuple[jax.Array, Slices]:
        found: tuple[jax.Array, Slices] = self._compute(slices, batch)
        return found

    def lower(self, slices: Slices, batch: Batch) -> jax.stages.Lowered:
        """Lowers the program of `__call__` for these shapes and dtypes."""
        lowered: jax.stages.Lowered = self._compute.lower(slices, batch)
        return lowered

    def compile_ahead(self) -> None:
        """Compiles the program for the shapes and dtypes that the constructor was given."""
        _, _, slices, batch, on_devices = self._made_of
        if isinstance(on_devices, PartitionedGradientFn):
            on_devices.compile_ahead(batch)
        elif on_devices is None:
            self.lower(slices, batch).compile()


@functools.lru_cache(maxsize=16)
def compiled_gradient(loss: LossFn, partition: Partition) -> jax.stages.Wrapped:
    """Compiles (slices, batch) -> (loss, slices of its gradient), once for equal arguments."""
    of_batch = jax.value_and_grad(functools.partial(loss_of, loss))

    @jax.jit
    def value_and_grad(slices: Slices, batch: Any) -> tuple[jax.Array, Slices]:
        value, gradient = of_batch(partition.join(slices), batch)
        return value, partition.split(gradient)

    return value_and_grad


Blocks = dict[str, jax.Array]  # path of a parameter -> a device's padded part of it
Pieces = dict[str, jax.Array]  # name of a piece -> its values


class HeldPiece(NamedTuple):
    """A piece of the partition that a device holds.

    Attributes:
      shard: the index of the shard that serves the piece.
      name: the name of the piece.
      leaf: the path of the parameter that the piece is part of.
      region: the piece's region of that parameter.
    """

    shard: int
    name: str
    leaf: str
    region: Region


@final
class PartitionedGradientFn:
    """Computes (slices, batch) -> (loss, slices of its gradient) on one replica's devices.

    If the replica spans several processes, each of them has one of these, which takes and returns
    the slices of the process's own shards (`Partition.of_process`). All of them must be called
    equally often, with the same batches.

    Args:
      sharding: how the replica is sharded over its devices.
      params: the parameters of the whole network; only their shapes and dtypes are used.
      partition: the partition of all parameters into slices.
      devices: the devices of all processes, at least as many as the sharding has.

    Attributes:
      partition: the partition of the parameters whose slices this process takes.
      held: the pieces that each device gets from this process.
    """

    def __init__(
        self, sharding: ModelSharding, params: Params, partition: Partition, devices: Sequence[Any]
    ) -> None:
        self._made_of = sharding, shapes_of(params), partition
        self.sharding, self._spans = sharding, sharding.processes > 1
        self.partition = partition.of_process(
            jax.process_index() if self._spans else 0, sharding.processes
        )
        self._mesh = sharding.mesh(devices)
        self._abstract = sharding.abstract(params, self._mesh)
        self._layout = layout = Layout(sharding, params)
        self.held = pieces_held(self.partition, layout)
        self._here = [  # the devices of this process, with their numbers on the mesh
            (number, device)
            for number, device in enumerate(devices[: sharding.devices])
            if device.process_index == jax.process_index()
        ]
        self._dtypes = {
            path_name(p): leaf.dtype for p, leaf in jax.tree.leaves_with_path(self._abstract)
        }
        self._place = [  # runs on the device even if that holds nothing but padding
            jax.jit(
                functools.partial(self._blocks_of, self.held[number]),
                out_shardings=SingleDeviceSharding(device),
            )
            for number, device in self._here
        ]
        self._take = [
            jax.jit(functools.partial(_pieces_of, self.held[number], layout, number))
            for number, _ in self._here
        ]
        self._compute = sharding.value_and_grad(params, self._mesh)
        self._lowered: dict[Any, jax.stages.Lowered] = {}
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._turn = threading.Lock()  # replicas that share devices take turns on them

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments but the devices; another process uses its own devices."""
        return _on_devices_here, self._made_of

    def __call__(self, slices: Slices, batch: Batch) -> tuple[jax.Array, Slices]:
        home = jnp.asarray(next(iter(slices[0].values()))).sharding
        params, everywhere = self.fetched(slices), self._on_all_devices(batch)
        with self._turn:
            program = self.lower(slices, batch).compile()
            if self._spans:
                with joint_computation():
                    loss, gradient = jax.block_until_ready(program(params, everywhere))
            else:
                loss, gradient = program(params, everywhere)
                jax.block_until_ready(loss)
        return jax.device_put(loss.addressable_data(0), home), self.pushed(gradient, home)

    def compile_ahead(self, batch: Batch) -> None:
        """Compiles the devices' joint program, and each device's programs before and after it.

        Args:
          batch: a batch with the shapes and dtypes of all batches.
        """
        if self._spans:
            require_same_program(self.lower((), batch))
            self._meet(batch)
        self.lower((), batch).compile()
        for (number, device), place, take in zip(self._here, self._place, self._take, strict=True):
            on = SingleDeviceSharding(device)

            def like(shape: Any, leaf: str, on: Any = on) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct(shape, self._dtypes[leaf], sharding=on)

            shapes = {p.name: ([b - a for a, b in p.region], p.leaf) for p in self.held[number]}
            place.lower({name: like(*shape) for name, shape in shapes.items()}).compile()
            leaves = self._layout.shapes
            take.lower({n: like(self._layout.block_shape(n), n) for n in leaves}).compile()

    def _meet(self, batch: Batch) -> None:
        """Runs the joint program once: JAX connects devices only if all run it within 30 s."""
        program = self.lower((), batch).compile()
        params = jax.tree.map(
            lambda like: jax.device_put(jnp.zeros(like.shape, like.dtype), like.sharding),
            self._abstract,
        )
        zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), batch)
        least(0)  # waits until all have compiled it
        with joint_computation():
            jax.block_until_ready(program(params, self._on_all_devices(zeros)))

    def fetched(self, slices: Slices) -> Params:
        """Sends each device its own pieces, and returns the padded parameters on the mesh."""
        blocks = [
            place(
                jax.device_put({p.name: slices[p.shard][p.name] for p in self.held[number]}, device)
            )
            for (number, device), place in zip(self._here, self._place, strict=True)
        ]

        def array(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            parts = [block[path_name(path)] for block in blocks]
            return jax.make_array_from_single_device_arrays(like.shape, like.sharding, parts)

        return jax.tree_util.tree_map_with_path(array, self._abstract)

    def pushed(self, gradient: Gradient, home: Any) -> Slices:
        """Takes from each device the pieces of the gradient that it owns.

        Args:
          gradient: the padded gradient on the mesh.
          home: the sharding of the shards' arrays, which the result has.

        Returns:
          The gradient, a slice for each shard.
        """
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        blocks: dict[Any, Blocks] = {device: {} for _, device in self._here}
        for path, leaf in leaves:
            for shard in leaf.addressable_shards:
                blocks[shard.device][path_name(path)] = shard.data
        found: Pieces = {}
        for (_, device), take in zip(self._here, self._take, strict=True):
            found |= jax.device_put(take(blocks[device]), home)
        return tuple({p.name: found[p.name] for p in pieces} for pieces in self.partition.shards)

    def lower(self, slices: Slices, batch: Batch) -> jax.stages.Lowered:
        """Lowers the devices' joint program for batches of these shapes; no memory is allocated.

        It is lowered at most once for each batch shape.
        """
        del slices  # the constructor knows their shapes
        leaves, structure = jax.tree.flatten(batch)
        key = (structure, *((x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for x in leaves))
        if key not in self._lowered:
            like = [jax.ShapeDtypeStruct(*key_, sharding=self._replicated) for key_ in key[1:]]
            batch_like = jax.tree.unflatten(structure, like)
            self._lowered[key] = self._compute.lower(self._abstract, batch_like)
        return self._lowered[key]

    def _on_all_devices(self, batch: Batch) -> Batch:
        """Sends a batch to all devices; every process of the replica has the same one."""
        if not self._spans:
            return jax.device_put(batch, self._replicated)

        # `device_put` would compare the batches of all processes, by a collective.
        def everywhere(x: Any) -> jax.Array:
            parts = [jax.device_put(x, device) for _, device in self._here]
            return jax.make_array_from_single_device_arrays(x.shape, self._replicated, parts)

        return jax.tree.map(everywhere, batch)

    def _blocks_of(self, held: tuple[HeldPiece, ...], pieces: Pieces) -> Blocks:
        """Joins the pieces that a device holds to its padded blocks, as the joint program wants."""
        found: dict[str, list[tuple[Region, Any]]] = {name: [] for name in self._layout.shapes}
        for piece in held:
            found[piece.leaf].append((piece.region, pieces[piece.name]))
        blocks = {
            name: _padded(parts, self._layout.block_shape(name), self._dtypes[name])
            for name, parts in found.items()
        }
        return {n: b[None] if self.sharding.broadcast_axes(n) else b for n, b in blocks.items()}


@final
class SpanningGradientFn:
    """The gradient function of a replica that spans several processes, before it is sent to them.

    In each of these processes, it is unpickled as a `PartitionedGradientFn`.

    Args:
      sharding: how the replica is sharded over its devices.
      params: the parameters of the whole network; only their shapes and dtypes are used.
      partition: the partition of all parameters into slices.
    """

    def __init__(self, sharding: ModelSharding, params: Params, partition: Partition) -> None:
        self._made_of = sharding, shapes_of(params), partition

    def __reduce__(self) -> tuple[Any, ...]:
        return _on_devices_here, self._made_of


def shapes_of(params: Params) -> Params:
    """Returns a pytree of the parameters' shapes and dtypes, without their values."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)


def _on_devices_here(
    sharding: ModelSharding, params: Params, partition: Partition
) -> PartitionedGradientFn:
    if sharding.processes > 1:
        devices = joint_devices(sharding.devices, sharding.processes)
        return PartitionedGradientFn(sharding, params, partition, devices)
    return PartitionedGradientFns(sharding, params, partition).on_devices(0)


def pieces_held(partition: Partition, layout: Layout) -> list[tuple[HeldPiece, ...]]:
    """Returns, for each device, the pieces that make up its blocks.

    If the replica spans several processes, a device gets only what it owns; the devices' joint
    program gives it the rest (`ModelSharding.broadcast_axes`).

    Args:
      partition: the partition of the parameters into slices.
      layout: the regions of the parameters that each device holds.
    """
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
                layout.processes == 1
                and not layout.owns(piece.leaf, device)
                and _within(piece.region, layout.region(piece.leaf, device))
            )
        )
        for device in range(layout.devices)
    ]


def _padded(parts: list[tuple[Region, Any]], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if not parts:
        return jnp.zeros(shape, dtype)
    block: jax.Array = joined(parts)
    if block.shape == shape:
        return block
    return jnp.pad(block, [(0, n - has) for n, has in zip(shape, block.shape, strict=True)])


def _pieces_of(held: tuple[HeldPiece, ...], layout: Layout, device: int, blocks: Blocks) -> Pieces:
    """Splits a device's blocks of the gradient into the pieces that it owns."""
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
    """The gradient functions of model-parallel replicas, compiled once for each set of devices.

    Args:
      sharding: how each replica is sharded over its devices.
      params: the parameters of the whole network; only their shapes and dtypes are used.
      partition: the partition of the parameters into slices.
    """

    def __init__(self, sharding: ModelSharding, params: Params, partition: Partition) -> None:
        self._sharding, self._params, self._partition = sharding, shapes_of(params), partition
        self._made: dict[int, PartitionedGradientFn] = {}
        self._spanning = SpanningGradientFn(sharding, params, partition)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments; another process makes the functions for its own devices."""
        return PartitionedGradientFns, (self._sharding, self._params, self._partition)

    def report(self) -> dict[str, int]:
        """Returns the number of devices of a replica, and the maximum of their traffic.

        Returns:
          `count`: the number of devices; `shards_each`: the largest number of shards that a device
          communicates with; `fetched_bytes_each`: the most bytes that a device fetches.
        """
        holds = pieces_held(self._partition, Layout(self._sharding, self._params))
        sizes = {
            path_name(path): leaf.dtype.itemsize
            for path, leaf in jax.tree_util.tree_leaves_with_path(self._params)
        }
        fetched = [sum(numbers_in(p.region) * sizes[p.leaf] for p in pieces) for pieces in holds]
        return {
            "count": self._sharding.devices,
            "shards_each": max(len({p.shard for p in pieces}) for pieces in holds),
            "fetched_bytes_each": max(fetched),
        }

    @property
    def processes(self) -> int:
        """The number of processes that each replica spans."""
        return self._sharding.processes

    def of(self, replica: int) -> PartitionedGradientFn | SpanningGradientFn:
        """Returns the gradient function of a replica.

        Args:
          replica: the index of the replica.
        """
        return self._spanning if self.processes > 1 else self.on_devices(replica)

    def on_devices(self, replica: int) -> PartitionedGradientFn:
        """Returns the gradient function of a replica, on its own devices of this process.

        If there are too few devices, several replicas share a set of devices and take turns.

        Args:
          replica: the index of the replica.
        """
        devices, size = jax.local_devices(), self._sharding.devices
        group = replica % max(1, len(devices) // size)
        if group not in self._made:
            mine = devices[group * size : (group + 1) * size]
            self._made[group] = PartitionedGradientFn(
                self._sharding, self._params, self._partition, mine
            )
        return self._made[group]
