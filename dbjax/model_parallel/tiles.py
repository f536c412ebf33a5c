"""Images cut into tiles over a grid of devices, and the halos that neighbours exchange.

Arrays are [rows, columns, ...]; each of the two is cut into blocks of ceil(positions /
devices), padded at the end. A `HaloWindow` says which input positions an output position needs;
`Tiles.window` gives a device all that its own output positions need, for which it gets from
its neighbours what it does not hold itself, and nothing else (section 3: a node whose edges
cross a boundary sends its state once, however many of them cross).

With one device nothing travels, and the same code is the whole network.
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
    """Patches of `width` that lie inside the input."""
    return HaloWindow(inputs, (inputs - width) // stride + 1, width, stride)


def same(inputs: int, width: int) -> HaloWindow:
    """Patches of `width` around every input position."""
    return HaloWindow(inputs, inputs, width, before=width // 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A grid of devices over an image; one device: the whole image."""

    rows: int = 1
    columns: int = 1

    @property
    def axes(self) -> Axes:
        return ((ROW, self.rows), (COLUMN, self.columns))

    def window(self, x: jax.Array, reads: HaloWindow) -> jax.Array:
        """What this device's output positions read, of its tile of x and its neighbours'."""
        x = halo.window(x, 0, ROW, self.rows, reads)
        return halo.window(x, 1, COLUMN, self.columns, reads)

    def window_of_image(self, x: jax.Array, reads: HaloWindow) -> jax.Array:
        """The same, of an image x that every device has whole."""
        x = halo.window_of_whole(x, 0, ROW, self.rows, reads)
        return halo.window_of_whole(x, 1, COLUMN, self.columns, reads)

    def gathered(self, x: jax.Array, positions: int) -> jax.Array:
        """All tiles of x put together, on every device."""
        for dim, (axis, devices) in enumerate(self.axes):
            if devices > 1:
                x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
        return x[:positions, :positions]


WHOLE = Tiles()


def grid(devices: int) -> Tiles:
    """The most nearly square grid of so many devices.

    Raises:
      ValueError: they are none.
    """
    if devices < 1:
        raise ValueError(f"tiles over {devices} devices: at least 1")
    columns = next(c for c in range(math.isqrt(devices), 0, -1) if devices % c == 0)
    return Tiles(devices // columns, columns)
