"""How one replica's network is cut over several devices (section 3).

A `ModelSharding` is made of a mesh, rules that say along which of its axes each parameter is cut, and
the loss as one device computes its part of it, with the messages that it exchanges written
out: it runs under `jax.shard_map`, where mesh axes are manual. The mesh itself is of
`AxisType.Explicit`: an array's type says how it lies, and one that lies otherwise than the
rules say is an error, never a silent transfer.

A dimension that does not divide is padded at its end. What is in the padding is zero and
stays so: its gradient is zero.
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

from dbjax.types import LossFn, Params, loss_of

Rules = tuple[tuple[str, PartitionSpec], ...]  # pattern of a parameter's whole path -> its cut
Axes = tuple[tuple[str, int], ...]  # of a mesh: names and sizes, the last one varies fastest


@dataclasses.dataclass(frozen=True)
class ModelSharding:
    """A network cut over devices.

    Attributes:
      axes: of the mesh.
      rules: the first whose pattern matches a parameter's path (`layers/0/kernel`) counts.
      loss: (a device's blocks of the parameters, batch) -> mean over the batch, the same on
        every device; may use collectives over `axes`. Where `Task.takes_key`, its third
        argument is the key, the same on every device: what is drawn for a block alone must fold
        in `jax.lax.axis_index`.
    """

    axes: Axes
    rules: Rules
    loss: LossFn

    def __post_init__(self) -> None:
        sizes = dict(self.axes)
        for axis, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"Cut: axis {axis!r} of {size!r} devices: at least 1")
        for pattern, spec in self.rules:
            for axis in axes_of(spec):
                if axis not in sizes:
                    raise ValueError(
                        f"Cut: rule {pattern!r} cuts along {axis!r}, which is no axis of the mesh: "
                        f"{', '.join(sizes)}"
                    )

    @property
    def devices(self) -> int:
        return math.prod(size for _, size in self.axes)

    def mesh(self, devices: Sequence[Any]) -> Mesh:
        """A mesh of the first of these devices, in this very order.

        Raises:
          ValueError: they are too few.
        """
        if len(devices) < self.devices:
            raise ValueError(
                f"a network cut into {self.devices} needs as many devices, there are "
                f"{len(devices)}; on CPUs set jax_num_cpu_devices before JAX starts"
            )
        names, sizes = zip(*self.axes, strict=True)
        grid = np.array(devices[: self.devices]).reshape(sizes)
        return Mesh(grid, names, axis_types=(AxisType.Explicit,) * len(sizes))

    def spec(self, path: str) -> PartitionSpec:
        """How the parameter of that path is cut.

        Raises:
          ValueError: no rule matches.
        """
        for pattern, spec in self.rules:
            if re.fullmatch(pattern, path):
                return spec
        raise ValueError(f"params/{path}: no rule says how to cut it")

    def specs(self, params: Params) -> Params:
        """A pytree like `params` of how each is cut."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self.spec(path_name(path)), params)

    def value_and_grad(self, params: Params, mesh: Mesh) -> jax.stages.Wrapped:
        """Compiles (padded parameters, batch) -> (loss, its gradient, padded likewise).

        Args:
          params: of their structure; nothing else is looked at.
          mesh: where it will run; the batch has to be on all of it.
        """
        specs = self.specs(params)
        return jax.jit(
            jax.shard_map(
                jax.value_and_grad(functools.partial(loss_of, self.loss)),
                mesh=mesh,
                in_specs=(specs, PartitionSpec()),
                out_specs=(PartitionSpec(), specs),
            )
        )

    def abstract(self, params: Params, mesh: Mesh) -> Params:
        """The padded parameters' shapes and places, without values."""
        layout = Layout(self, params)

        def padded(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            name = path_name(path)
            return jax.ShapeDtypeStruct(
                layout.padded_shape(name),
                leaf.dtype,
                sharding=NamedSharding(mesh, self.spec(name)),
            )

        return jax.tree_util.tree_map_with_path(padded, params)


Region = tuple[tuple[int, int], ...]  # for each dimension: from where to where


class Layout:
    """Which device holds what of each parameter. Devices are counted along the mesh, row by row."""

    def __init__(self, sharding: ModelSharding, params: Params) -> None:
        self.devices = sharding.devices
        self._sizes = dict(sharding.axes)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.shapes = {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
        self._cuts = {name: self._axes_of(sharding.spec(name), name) for name in self.shapes}

    def block_shape(self, name: str) -> tuple[int, ...]:
        """What each device holds of a parameter, padding included."""
        return tuple(
            math.ceil(n / self._count(axes))
            for n, axes in zip(self.shapes[name], self._cuts[name], strict=True)
        )

    def padded_shape(self, name: str) -> tuple[int, ...]:
        """The whole parameter with its padding."""
        return tuple(
            size * self._count(axes)
            for size, axes in zip(self.block_shape(name), self._cuts[name], strict=True)
        )

    def region(self, name: str, device: int) -> Region:
        """What a device holds of a parameter, without padding; may be empty."""
        place = self._place(device)
        found = []
        for n, size, axes in zip(
            self.shapes[name], self.block_shape(name), self._cuts[name], strict=True
        ):
            index = 0
            for axis in axes:
                index = index * self._sizes[axis] + place[axis]
            found.append((min(n, index * size), min(n, (index + 1) * size)))
        return tuple(found)

    def owns(self, name: str, device: int) -> bool:
        """Whether it is the first of the devices that hold this part of the parameter."""
        used = {axis for axes in self._cuts[name] for axis in axes}
        return all(i == 0 for axis, i in self._place(device).items() if axis not in used)

    def _place(self, device: int) -> dict[str, int]:
        found = {}
        for axis, size in reversed(self._sizes.items()):
            device, found[axis] = divmod(device, size)
        return found

    def _count(self, axes: tuple[str, ...]) -> int:
        return math.prod(self._sizes[axis] for axis in axes)

    def _axes_of(self, spec: PartitionSpec, name: str) -> tuple[tuple[str, ...], ...]:
        """For each dimension the mesh axes along which it is cut."""
        ndim = len(self.shapes[name])
        if len(spec) > ndim:
            raise ValueError(f"params/{name} has {ndim} dimensions, its rule {spec} more")
        given = [axes if isinstance(axes, tuple) else (axes,) if axes else () for axes in spec]
        return (*given, *[()] * (ndim - len(given)))


def path_name(path: Any) -> str:
    """The path of a leaf, such as `layers/0/kernel`; without the `value` of NNX's variables."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def axes_of(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that a parameter is cut along."""
    return tuple(
        axis for axes in spec if axes for axis in (axes if isinstance(axes, tuple) else (axes,))
    )
