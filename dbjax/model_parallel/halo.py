"""One dimension of an array cut into blocks, and what a block needs of the ones beside it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class HaloWindow:
    """Output position p reads `width` input positions, from `stride` p - `before` on.

    Attributes:
      inputs: positions of the input; what is read outside of them is zero.
      outputs: positions of the output.
      width: how many positions each output position reads.
    """

    inputs: int
    outputs: int
    width: int
    stride: int = 1
    before: int = 0

    def begin(self, block: int, blocks: int) -> int:
        """The first position that a block of the outputs reads; may be negative."""
        return block * math.ceil(self.outputs / blocks) * self.stride - self.before

    def length(self, blocks: int) -> int:
        """How many positions a block of the outputs reads."""
        return (math.ceil(self.outputs / blocks) - 1) * self.stride + self.width


@dataclasses.dataclass(frozen=True)
class Message:
    """Positions `begin` .. `end` of a block go to the block `offset` before it.

    Attributes:
      pairs: (source, target) of those that need it.
    """

    offset: int
    begin: int
    end: int
    pairs: tuple[tuple[int, int], ...]


def messages(reads: HaloWindow, blocks: int) -> list[Message]:
    """What has to travel so that every block can compute its outputs; in order of offset.

    Put together they are contiguous, and begin `begin` positions into the first. Offset 0 is
    what a block has itself.
    """
    size = math.ceil(reads.inputs / blocks)
    needs: dict[int, list[tuple[int, int, int]]] = {0: []}  # offset -> (target, begin, end)
    for target in range(blocks):
        first = reads.begin(target, blocks)
        end = min(reads.inputs, first + reads.length(blocks))
        for source in range(max(0, first) // size, blocks):
            begins, ends = max(0, first - source * size), min(size, end - source * size)
            if begins < ends:
                needs.setdefault(source - target, []).append((target, begins, ends))
    lowest, highest = min(needs), max(needs)
    found = []
    for offset in range(lowest, highest + 1):
        wanted = needs.get(offset, [])
        begin = min((b for _, b, _ in wanted), default=0) if offset == lowest else 0
        end = max((e for _, _, e in wanted), default=size) if offset == highest else size
        pairs = tuple((target + offset, target) for target, _, _ in wanted)
        found.append(Message(offset, begin, end, pairs))
    return found


def window(x: jax.Array, dim: int, axis: str, blocks: int, reads: HaloWindow) -> jax.Array:
    """All that this device's outputs read, where each device has its block of x."""
    if x.shape[dim] != math.ceil(reads.inputs / blocks):
        raise ValueError(f"a block of {x.shape[dim]} is not one of {blocks} of {reads.inputs}")
    if blocks == 1:
        return window_of_whole(x, dim, axis, blocks, reads)
    size, parts = x.shape[dim], messages(reads, blocks)
    received = [
        part if m.offset == 0 else jax.lax.ppermute(part, axis, m.pairs)
        for m in parts
        for part in [jax.lax.slice_in_dim(x, m.begin, m.end, axis=dim)]
    ]
    begins = [
        reads.begin(i, blocks) - (i + parts[0].offset) * size - parts[0].begin
        for i in range(blocks)
    ]
    joined = jnp.concatenate(received, axis=dim)
    found = _slice(joined, dim, axis, begins, reads.length(blocks))
    if size * blocks == reads.inputs:
        return found
    return _without_padding(found, dim, axis, blocks, reads)


def window_of_whole(x: jax.Array, dim: int, axis: str, blocks: int, reads: HaloWindow) -> jax.Array:
    """The same, where every device has all of x."""
    begins = [reads.begin(i, blocks) for i in range(blocks)]
    return _slice(x, dim, axis, begins, reads.length(blocks))


def _slice(x: jax.Array, dim: int, axis: str, begins: list[int], length: int) -> jax.Array:
    """`length` positions from begins[i] on, on device i; zeros where x has none."""
    before = max(0, -min(begins))
    after = max(0, max(begins) + length - x.shape[dim])
    if before or after:
        x = jnp.pad(x, [(before, after) if d == dim else (0, 0) for d in range(x.ndim)])
    if len(set(begins)) == 1:
        return jax.lax.slice_in_dim(x, before + begins[0], before + begins[0] + length, axis=dim)
    begin = before + begins[0] + jax.lax.axis_index(axis) * (begins[1] - begins[0])
    return jax.lax.dynamic_slice_in_dim(x, begin, length, axis=dim)


def _without_padding(
    x: jax.Array, dim: int, axis: str, blocks: int, reads: HaloWindow
) -> jax.Array:
    step = reads.begin(1, blocks) - reads.begin(0, blocks)
    position = reads.begin(0, blocks) + jax.lax.axis_index(axis) * step + jnp.arange(x.shape[dim])
    shape = [-1 if d == dim else 1 for d in range(x.ndim)]
    return jnp.where((position < reads.inputs).reshape(shape), x, 0)
