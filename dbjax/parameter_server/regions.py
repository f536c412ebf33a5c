"""Regions of arrays: blocks that were cut out of one, and how they go together again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from dbjax.model_parallel.sharding import Region

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
