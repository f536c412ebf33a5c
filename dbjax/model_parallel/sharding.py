"""Sharding of one replica's network over several devices (section 3).

A `ModelSharding` consists of the axes of a mesh, of rules that say along which axes each parameter
is sharded, and of the loss as one device computes its part of it. The loss runs under
`jax.shard_map`, where mesh axes are manual, so all communication is written out explicitly. The
axes of the mesh have `AxisType.Explicit`: the type of an array includes its sharding, and an array
with a sharding other than the rules' is an error, never a silent transfer.

A dimension that is not divisible by its number of blocks is padded at the end. The padding is zero
and stays zero, because its gradient is zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dbjax.types import Batch, Gradient, LossFn, Params, loss_of

Rules = tuple[tuple[str, PartitionSpec], ...]  # pattern of a parameter's whole path -> its sharding
Axes = tuple[tuple[str, int], ...]  # names and sizes of a mesh's axes; the last one varies fastest


@dataclasses.dataclass(frozen=True)
class ModelSharding:
    """A network sharded over devices.

    Paper: section 3.

    Attributes:
      axes: the names and sizes of the mesh axes.
      rules: pairs of a regular expression and a `PartitionSpec`. A parameter is sharded by the
        first rule whose expression matches its whole path, such as `layers/0/kernel`.
      loss: (one device's blocks of the parameters, batch) -> mean loss over the batch. It must
        return the same value on every device, and may use collectives over `axes`. If
        `Task.takes_key` is True, its third argument is the random key, the same on every device;
        random numbers that belong to one block must fold in `jax.lax.axis_index`.
      processes: the number of operating-system processes over which the devices of a replica are
        spread, equally many to each and in the order of the mesh. With more than one, a replica may
        span machines; this needs `runtime="ray"`.

    Raises:
      ValueError: an axis is not of at least one device, a rule names an axis that is not in `axes`,
        or the devices cannot be spread over the processes.
    """

    axes: Axes
    rules: Rules
    loss: LossFn
    processes: int = 1

    def __post_init__(self) -> None:
        sizes = dict(self.axes)
        for axis, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(
                    f"ModelSharding: axis {axis!r} has size {size!r}; it must be an integer of at "
                    "least 1"
                )
        for pattern, spec in self.rules:
            for axis in axes_of(spec):
                if axis not in sizes:
                    raise ValueError(
                        f"ModelSharding: rule {pattern!r} shards along {axis!r}, which is not an "
                        f"axis of the mesh; use one of {', '.join(sizes)}"
                    )
        if not isinstance(self.processes, int) or self.processes < 1:
            raise ValueError(
                f"ModelSharding: processes={self.processes!r} must be an integer of at least 1"
            )
        if self.devices % self.processes:
            raise ValueError(
                f"ModelSharding: {self.devices} devices cannot be spread equally over "
                f"processes={self.processes}; use a divisor of {self.devices}"
            )

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(size for _, size in self.axes)

    def mesh(self, devices: Sequence[Any]) -> Mesh:
        """Makes a mesh of the first `self.devices` of the given devices, in the given order.

        Raises:
          ValueError: there are too few devices.
        """
        if len(devices) < self.devices:
            raise ValueError(
                f"a network sharded over {self.devices} devices needs as many, but there are "
                f"{len(devices)}; on CPUs set jax_num_cpu_devices before JAX starts"
            )
        names, sizes = zip(*self.axes, strict=True)
        grid = np.array(devices[: self.devices]).reshape(sizes)
        return Mesh(grid, names, axis_types=(AxisType.Explicit,) * len(sizes))

    def spec(self, path: str) -> PartitionSpec:
        """Returns the sharding of the parameter with the given path.

        Raises:
          ValueError: no rule matches the path.
        """
        for pattern, spec in self.rules:
            if re.fullmatch(pattern, path):
                return spec
        raise ValueError(f"params/{path}: no sharding rule matches it; add one")

    def specs(self, params: Params) -> Params:
        """Returns the shardings of all parameters, a pytree with the structure of `params`."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self.spec(path_name(path)), params)

    def broadcast_axes(self, path: str) -> tuple[str, ...]:
        """Returns the mesh axes along which the first device gives the others its block.

        With several processes, what is replicated is fetched by one process and sent on, since
        another process might fetch another version of it.
        """
        if self.processes == 1:
            return ()
        used = axes_of(self.spec(path))
        return tuple(axis for axis, _ in self.axes if axis not in used)

    def value_and_grad(self, params: Params, mesh: Mesh) -> jax.stages.Wrapped:
        """Returns a jitted function (padded parameters, batch) -> (loss, padded gradient).

        Args:
          params: the parameters, or their shapes and dtypes; only these are used.
          mesh: the mesh on which the function runs. Its arguments lie on it as `abstract` says, and
            the batch is replicated over it.
        """
        given = jax.tree.map(lambda like: like.sharding.spec, self.abstract(params, mesh))

        def own(path: Any, block: jax.Array) -> jax.Array:
            axes = self.broadcast_axes(path_name(path))
            return jax.lax.psum(block[0], axes) if axes else block

        def step(blocks: Params, batch: Batch) -> tuple[jax.Array, Gradient]:
            blocks = jax.tree_util.tree_map_with_path(own, blocks)
            return jax.value_and_grad(functools.partial(loss_of, self.loss))(blocks, batch)

        return jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(given, PartitionSpec()),
                out_specs=(PartitionSpec(), self.specs(params)),
            )
        )

    def abstract(self, params: Params, mesh: Mesh) -> Params:
        """Returns the shapes, dtypes and shardings of the padded parameters, without values.

        A parameter with `broadcast_axes` has a first dimension over the devices along these axes:
        the block of the first of them counts, and those of all others are zero.
        """
        layout = Layout(self, params)

        def padded(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            name = path_name(path)
            shape, spec = layout.padded_shape(name), self.spec(name)
            if axes := self.broadcast_axes(name):
                copies = math.prod(size for axis, size in self.axes if axis in axes)
                shape, spec = (copies, *shape), PartitionSpec(axes, *spec)
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree_util.tree_map_with_path(padded, params)


Region = tuple[tuple[int, int], ...]  # for each dimension: the first index, and the end (exclusive)


class Layout:
    """Says which part of each parameter each device holds.

    Devices are numbered along the mesh, row by row. Parameters are named by their paths.

    Args:
      sharding: the sharding of the network.
      params: the parameters without padding, or their shapes.

    Raises:
      ValueError: no rule matches a parameter, or its rule has too many dimensions.
    """

    def __init__(self, sharding: ModelSharding, params: Params) -> None:
        self.devices, self.processes = sharding.devices, sharding.processes
        self._sizes = dict(sharding.axes)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.shapes = {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
        self._split = {name: self._axes_of(sharding.spec(name), name) for name in self.shapes}

    def block_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of the block of a parameter that each device holds, with padding."""
        return tuple(
            math.ceil(n / self._count(axes))
            for n, axes in zip(self.shapes[name], self._split[name], strict=True)
        )

    def padded_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of the whole parameter with padding."""
        return tuple(
            size * self._count(axes)
            for size, axes in zip(self.block_shape(name), self._split[name], strict=True)
        )

    def region(self, name: str, device: int) -> Region:
        """Returns the region of a parameter that a device holds, without padding; may be empty."""
        place = self._place(device)
        found = []
        for n, size, axes in zip(
            self.shapes[name], self.block_shape(name), self._split[name], strict=True
        ):
            index = 0
            for axis in axes:
                index = index * self._sizes[axis] + place[axis]
            found.append((min(n, index * size), min(n, (index + 1) * size)))
        return tuple(found)

    def process(self, device: int) -> int:
        """Returns the index of the process to which a device belongs."""
        return device * self.processes // self.devices

    def owns(self, name: str, device: int) -> bool:
        """Returns True if `device` is the first of the devices that hold the same region."""
        used = {axis for axes in self._split[name] for axis in axes}
        return all(i == 0 for axis, i in self._place(device).items() if axis not in used)

    def _place(self, device: int) -> dict[str, int]:
        found = {}
        for axis, size in reversed(self._sizes.items()):
            device, found[axis] = divmod(device, size)
        return found

    def _count(self, axes: tuple[str, ...]) -> int:
        return math.prod(self._sizes[axis] for axis in axes)

    def _axes_of(self, spec: PartitionSpec, name: str) -> tuple[tuple[str, ...], ...]:
        """Returns the mesh axes along which each dimension is sharded."""
        ndim = len(self.shapes[name])
        if len(spec) > ndim:
            raise ValueError(
                f"params/{name} has {ndim} dimensions, but its sharding rule {spec} has {len(spec)}"
            )
        given = [axes if isinstance(axes, tuple) else (axes,) if axes else () for axes in spec]
        return (*given, *[()] * (ndim - len(given)))


def path_name(path: Any) -> str:
    """Returns the path of a leaf, such as `layers/0/kernel`, without NNX's final `value`."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    """Returns the mesh axes along which a parameter is sharded."""
    return tuple(
        axis for axes in spec if axes for axis in (axes if isinstance(axes, tuple) else (axes,))
    )
