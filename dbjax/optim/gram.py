"""Dot products of the pairs s, y of L-BFGS and of the gradient, under jit.

Vectors are pytrees; a stack [m, ...] of them holds pair k at k mod m, zeros where there is
none yet. Gram matrices have s, then y, each oldest first and absent ones before them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dbjax.optim.space import Vector


def grown(
    gram: jax.Array, taken: jax.Array, stacks: tuple[Any, Any], new: tuple[Vector, ...]
) -> jax.Array:
    """[2 m + 3, 2 m + 3]: `gram` [2 m, 2 m], bordered by the new s, y and gradient.

    Args:
      gram: dot products of the pairs in `stacks`.
      taken: pairs put into `stacks` so far.
      stacks: those of s and of y.
      new: s, y and gradient, the only ones of which dot products are taken.
    """
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *new)
    border = jnp.concatenate([jnp.roll(_dots(stack, rows), -taken, axis=0) for stack in stacks])
    return jnp.block([[gram, border], [border.T, _dots(rows, rows)]])


def damp(s: Vector, y: Vector, gram: jax.Array, curvature: float) -> tuple[Vector, jax.Array]:
    """Powell 1978: y <- theta y + (1 - theta) B s if s . y <= curvature |s|^2, B = |y| / |s| I.

    Theta is such that s . y becomes 0.2 s . B s. `gram` as `grown` made it.
    """
    ss, sy, yy = gram[-3, -3], gram[-3, -2], gram[-2, -2]
    b = jnp.sqrt(yy / (ss + (ss == 0)))
    sbs = b * ss
    theta = jnp.minimum(1, 0.8 * sbs / (sbs - sy + (sbs == sy)))
    theta = jnp.where(sy > curvature * ss, 1, theta)

    def mixed(y: jax.Array, s: jax.Array) -> jax.Array:
        return (theta * y + (1 - theta) * b * s).astype(y.dtype)

    gram = gram.at[-2].set(mixed(gram[-2], gram[-3]))
    return jax.tree.map(mixed, y, s), gram.at[:, -2].set(mixed(gram[:, -2], gram[:, -3]))


def chosen(gram: jax.Array, good: jax.Array) -> jax.Array:
    """[2 m + 1, 2 m + 1]: with the new pair for the oldest one if it is good, else without."""
    m = (len(gram) - 3) // 2
    without = [*range(2 * m), 2 * m + 2]
    taking = [*range(1, m), 2 * m, *range(m + 1, 2 * m), 2 * m + 1, 2 * m + 2]
    order = jnp.where(good, jnp.array(taking), jnp.array(without))
    return gram[order][:, order]


def combined(
    coefficients: jax.Array, taken: jax.Array, stacks: tuple[Any, Any], gradient: Vector
) -> Vector:
    """Sum of coefficients [2 m + 1], in the order of a Gram matrix, times the vectors."""
    m = len(coefficients) // 2
    of_s, of_y = (jnp.roll(c, taken) for c in (coefficients[:m], coefficients[m:-1]))

    def leaf(s: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        pairs = jnp.tensordot(of_s, s, 1) + jnp.tensordot(of_y, y, 1)
        return (pairs + coefficients[-1] * g).astype(g.dtype)

    return jax.tree.map(leaf, *stacks, gradient)


def _dots(a: Any, b: Any) -> Any:
    """Every dot product of stacks [i, ...] and [j, ...], [i, j]; in float32 at least.

    Of complex numbers that of their parts, as if these were parameters of their own.
    """

    def dots(x: jax.Array, y: jax.Array) -> jax.Array:
        dtype, axes = jnp.promote_types(x.dtype, jnp.float32), tuple(range(1, x.ndim))
        return jnp.tensordot(x.conj().astype(dtype), y.astype(dtype), (axes, axes)).real

    return sum(jax.tree.leaves(jax.tree.map(dots, a, b)))
