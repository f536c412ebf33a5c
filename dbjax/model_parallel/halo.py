"""Halo exchange along one dimension: what a block of an array needs from neighbouring blocks.

A dimension of n positions is sharded into equal blocks of ceil(n / blocks) positions, with padding
at the end of the last ones.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class HaloWindow:
    """The input positions that each output position reads along one dimension.

    Output position p reads the `width` input positions that start at `stride` * p - `before`.

    Attributes:
      inputs: the number of input positions. Positions outside the input read as zero.
      outputs: the number of output positions.
      width: the number of input positions that one output position reads.
      stride: the distance between the windows of neighbouring output positions.
      before: how many positions the first window starts before the input.
    """

    inputs: int
    outputs: int
    width: int
    stride: int = 1
    before: int = 0

    def begin(self, block: int, blocks: int) -> int:
        """Returns the first input position that a block of the outputs reads; may be negative."""
        return block * math.ceil(self.outputs / blocks) * self.stride - self.before

    def length(self, blocks: int) -> int:
        """Returns the number of input positions that a block of the outputs reads."""
        return (math.ceil(self.outputs / blocks) - 1) * self.stride + self.width


@dataclasses.dataclass(frozen=True)
class Message:
    """A part of each block that other blocks at a fixed distance need.

    Attributes:
      offset: the index of the source block minus the index of the target block.
      begin: the first position of the source block that is sent.
      end: the position after the last one that is sent.
      pairs: (source, target) block indices of the targets that need the message.
    """

    offset: int
    begin: int
    end: int
    pairs: tuple[tuple[int, int], ...]


def messages(reads: HaloWindow, blocks: int) -> list[Message]:
    """Returns the messages that blocks exchange so that each can compute its outputs.

    The message with offset 0 is the part that a block already has. Concatenated in the order of
    the offsets, the messages to a block are contiguous positions of the input, which start at
    position `begin` of the first message's source block.

    Args:
      reads: the input positions that each output position reads.
      blocks: the number of blocks.

    Returns:
      The messages, sorted by offset.
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
    """Exchanges halos, and returns all input positions that this device's outputs read.

    Runs under `jax.shard_map`.

    Args:
      x: this device's block of the input.
      dim: the dimension of `x` that is sharded.
      axis: the name of the mesh axis over which it is sharded.
      blocks: the number of devices along that axis.
      reads: the input positions that each output position reads.

    Returns:
      `x` with `reads.length(blocks)` positions along `dim`; zeros outside the input.

    Raises:
      ValueError: `x` does not have the size of a block.
    """
    size = math.ceil(reads.inputs / blocks)
    if x.shape[dim] != size:
        raise ValueError(
            f"x has {x.shape[dim]} positions along dim={dim}; with {reads.inputs} inputs over "
            f"blocks={blocks} it must have {size}"
        )
    if blocks == 1:
        return window_of_whole(x, dim, axis, blocks, reads)
    parts = messages(reads, blocks)
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
    """Returns the same positions as `window`, without messages, from an x that is not sharded."""
    begins = [reads.begin(i, blocks) for i in range(blocks)]
    return _slice(x, dim, axis, begins, reads.length(blocks))


def _slice(x: jax.Array, dim: int, axis: str, begins: list[int], length: int) -> jax.Array:
    """Returns `length` positions from begins[i] on device i, with zeros outside of x."""
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
