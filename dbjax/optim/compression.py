"""Compression of gradients, with feedback of its error."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # a pytree of arrays


def kept_entries(leaf: Any, share: float) -> int:
    """Returns how many entries of a leaf top-k compression keeps: at least one, if it has any."""
    size: int = leaf.size
    return min(size, max(1, round(share * size)))


@functools.partial(jax.jit, static_argnames="share")
def top_k(gradient: Tree, error: Tree | None, share: float) -> tuple[Tree, Tree]:
    """Splits gradient + error into the largest entries of each leaf, and what is left.

    Source: Stich, Cordonnier & Jaggi 2018, "Sparsified SGD with Memory", Algorithm 1. Entries that
    are as large as the smallest one that is kept are kept, too.

    Args:
      gradient: a pytree of arrays.
      error: what was left before, a pytree like the gradient; None: nothing.
      share: how much of each leaf is kept, above 0 and at most 1.

    Returns:
      The compressed gradient, dense, and the new error. A gradient that is not finite is returned
      unchanged, with the old error, so that the shard that receives it refuses it.
    """
    before = jax.tree.map(jnp.zeros_like, gradient) if error is None else error
    total = jax.tree.map(jnp.add, gradient, before)
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradient)]))

    def largest(leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        least = jax.lax.top_k(jnp.abs(leaf).ravel(), kept_entries(leaf, share))[0][-1]
        return jnp.where(jnp.abs(leaf) >= least, leaf, 0)

    kept = jax.tree.map(largest, total)
    pushed = jax.tree.map(lambda k, g: jnp.where(finite, k, g), kept, gradient)
    left = jax.tree.map(lambda t, k, b: jnp.where(finite, t - k, b), total, kept, before)
    return pushed, left


def sparse_bytes(leaves: dict[str, Any], share: float, gradients: int) -> int:
    """Returns the size of a sum of compressed gradients on its way, in bytes.

    Each entry is sent with its place, of four bytes, unless the dense leaf is smaller.

    Args:
      leaves: the arrays of a shard's slice, by name.
      share: how much of each leaf of a gradient is kept.
      gradients: how many gradients the sum has.
    """
    return sum(
        min(leaf.nbytes, gradients * kept_entries(leaf, share) * (leaf.dtype.itemsize + 4))
        for leaf in leaves.values()
    )
