"""Images in tiles: what patches read, in both dimensions, and grids of devices."""

import numpy as np

from dbjax.model_parallel.halo import HaloWindow
from dbjax.model_parallel.tiles import Tiles, grid, same, valid


def test_both_dimensions_of_an_image():
    x = np.arange(5 * 5 * 2, dtype=np.float32).reshape(5, 5, 2)
    found = Tiles().window(x, same(5, 3))
    assert np.array_equal(found, np.pad(x, [(1, 1), (1, 1), (0, 0)]))
    assert np.array_equal(Tiles().window_of_image(x, same(5, 3)), found)


def test_what_patches_read():
    assert valid(10, 4) == HaloWindow(10, 7, 4)
    assert valid(10, 4, 3) == HaloWindow(10, 3, 4, stride=3)
    assert same(10, 5) == HaloWindow(10, 10, 5, before=2)


def test_grids_are_as_square_as_they_can_be():
    found = {n: (grid(n).rows, grid(n).columns) for n in (1, 2, 4, 6, 7, 8, 9, 12, 32)}
    assert found == {1: (1, 1), 2: (2, 1), 4: (2, 2), 6: (3, 2), 7: (7, 1), 8: (4, 2), 9: (3, 3),
                     12: (4, 3), 32: (8, 4)}  # fmt: skip
