"""Images sharded into tiles over a grid of devices, and the halos that neighbours exchange.

Arrays are [rows, columns, ...]. Rows and columns are each sharded into blocks of
ceil(positions / devices) positions, padded at the end. A `HaloWindow` says which input positions
an output position needs. `Tiles.window` returns all input positions that a device's own output
positions need. The device receives from its neighbours the positions that it does not hold itself,
and nothing else (section 3: a node whose edges cross a boundary sends its state once, however many
of them cross).

On a single device nothing is sent, and the same code computes the whole network.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from dbjax.model_parallel import halo
from dbjax.model_parallel.halo import HaloWindow
from dbjax.model_parallel.sharding import Axes

ROW, COLUMN = "row", "column"


def valid(inputs: int, width: int, stride: int = 1) -> HaloWindow:
    """Returns the window of patches of `width` positions that lie inside the input."""
    return HaloWindow(inputs, (inputs - width) // stride + 1, width, stride)


def same(inputs: int, width: int) -> HaloWindow:
    """Returns the window of patches of `width` positions around every input position."""
    return HaloWindow(inputs, inputs, width, before=width // 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A grid of devices over an image.

    Attributes:
      rows: the number of devices along the rows of an image.
      columns: the number of devices along its columns.
    """

    rows: int = 1
    columns: int = 1

    @property
    def axes(self) -> Axes:
        """The axes of the mesh: names and sizes."""
        return ((ROW, self.rows), (COLUMN, self.columns))

    def window(self, x: jax.Array, reads: HaloWindow) -> jax.Array:
        """Returns all positions that this device's outputs read, from tiles of x.

        Args:
          x: this device's tile, [rows, columns, ...].
          reads: what an output position reads, along either dimension.
        """
        x = halo.window(x, 0, ROW, self.rows, reads)
        return halo.window(x, 1, COLUMN, self.columns, reads)

    def window_of_image(self, x: jax.Array, reads: HaloWindow) -> jax.Array:
        """Returns the same positions as `window`, from an image x that is not sharded."""
        x = halo.window_of_whole(x, 0, ROW, self.rows, reads)
        return halo.window_of_whole(x, 1, COLUMN, self.columns, reads)

    def gathered(self, x: jax.Array, positions: int) -> jax.Array:
        """Returns the whole array on every device, gathered from its tiles.

        Args:
          x: this device's tile, [rows, columns, ...].
          positions: the number of rows and of columns of the whole array, without padding.
        """
        for dim, (axis, devices) in enumerate(self.axes):
            if devices > 1:
                x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
        return x[:positions, :positions]


WHOLE = Tiles()


def grid(devices: int) -> Tiles:
    """Returns the most nearly square grid of a number of devices.

    Raises:
      ValueError: `devices` is below 1.
    """
    if devices < 1:
        raise ValueError(f"devices={devices} must be at least 1")
    columns = next(c for c in range(math.isqrt(devices), 0, -1) if devices % c == 0)
    return Tiles(devices // columns, columns)
