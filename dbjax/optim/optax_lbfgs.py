"""L-BFGS as optax transformations that need one reduction per direction on sharded parameters.

The two-loop recursion computes 2 m dot products one after another, and on sharded parameters each
of them is a round of communication. This module computes all dot products at once and runs the
recursion on coefficients (Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dbjax.optim.gram import bordered, order
from dbjax.optim.lbfgs import direction_coefficients
from dbjax.optim.space import Vector

ZOOM = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")


class VectorFreeLbfgsState(NamedTuple):
    """The last m pairs: changes s of the parameters and y of the gradient.

    Attributes:
      count: the number of updates so far, a scalar int32.
      taken: the number of pairs accepted so far, a scalar int32. Pair k is stored at index k mod m.
      params: the parameters at the last update.
      gradient: the gradient at the last update, a pytree like the parameters.
      s: the changes of the parameters, a pytree like the parameters whose leaves are stacked
        [m, ...]; zeros where there is no pair yet.
      y: the changes of the gradient, stacked like s.
      gram: the dot products of s (oldest first) and y (oldest first), [2 m, 2 m]. Missing pairs
        are zeros before the others.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; hides tuple.count
    taken: jax.Array
    params: optax.Params
    gradient: optax.Updates
    s: Any
    y: Any
    gram: jax.Array


def lbfgs(
    memory: int = 10,
    curvature: float = 1e-10,
    damped: bool = False,
    linesearch: optax.GradientTransformationExtraArgs = ZOOM,
) -> optax.GradientTransformationExtraArgs:
    """Returns L-BFGS with a line search, a drop-in replacement for `optax.lbfgs`.

    `update` needs the arguments params, value, grad and value_fn. Use
    `optax.value_and_grad_from_state` to reuse the evaluation that the line search already made.

    Args:
      memory: the number of pairs that are kept, m.
      curvature: a pair is kept only if s . y > curvature |s|^2.
      damped: whether to damp other pairs (Powell 1978) instead of dropping them.
      linesearch: the optax line search; by default zoom, with at most 20 steps and first trial 1.

    Returns:
      An optax gradient transformation. See `scale_by_vector_free_lbfgs` for the direction, its
      first step and its errors.

    Raises:
      ValueError: `memory` is below 1.
    """
    direction = scale_by_vector_free_lbfgs(memory, curvature, damped)
    chain = optax.chain(direction, optax.scale(-1.0), linesearch)

    def init(params: optax.Params) -> optax.OptState:
        # optax's zoom starts with weak types and returns strong ones: a step would compile twice.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), chain.init(params))

    return optax.GradientTransformationExtraArgs(init, chain.update)


def scale_by_vector_free_lbfgs(
    memory: int = 10, curvature: float = 1e-10, damped: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation gradient -> H gradient, like `optax.scale_by_lbfgs`.

    Chain it with `optax.scale(-1)` to get a descent direction.

    Paper: Chen, Wang & Zhou 2014, section 3; Nocedal & Wright 2006, algorithm 7.4. The recursion
    starts from H = s . y / y . y of the newest pair. While there is no pair, H is
    min(1, 1 / |gradient|), so that the length of the first step is at most 1, as in optax.

    Differs from `optax.scale_by_lbfgs`, which keeps every pair, whatever its curvature.

    Args:
      memory: the number of pairs that are kept, m.
      curvature: a pair is kept only if s . y > curvature |s|^2.
      damped: whether to rescue a pair that fails this condition by mixing its y with B s
        (Powell 1978) until s . y is 0.2 s . B s, where B is |y| / |s| times the identity.

    Returns:
      An optax gradient transformation with a `VectorFreeLbfgsState`. Its `update` raises
      ValueError if it is called without params.

    Raises:
      ValueError: `memory` is below 1.
    """
    if memory < 1:
        raise ValueError(f"scale_by_vector_free_lbfgs: memory={memory} must be at least 1")

    def init(params: optax.Params) -> VectorFreeLbfgsState:
        def zeros(*stack: int) -> optax.Params:
            """Returns zeros sharded like params, in new arrays so that each can be donated."""
            return jax.tree.map(
                lambda x: jnp.broadcast_to(jnp.zeros_like(x), (*stack, *x.shape)), params
            )

        count, taken = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        dtype = jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(params))).dtype
        gram = jnp.zeros((2 * memory, 2 * memory), dtype)
        vectors = zeros(), zeros(), zeros(memory), zeros(memory)
        return VectorFreeLbfgsState(count, taken, *vectors, gram=gram)

    def update(
        gradient: optax.Updates,
        state: VectorFreeLbfgsState,
        params: optax.Params | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, VectorFreeLbfgsState]:
        if params is None:
            raise ValueError("scale_by_vector_free_lbfgs: update needs params: pass them third")
        with jax.default_matmul_precision("highest"):
            return _update(gradient, state, params, curvature, damped)

    return optax.GradientTransformationExtraArgs(init, update)


def _update(
    gradient: optax.Updates,
    state: VectorFreeLbfgsState,
    params: optax.Params,
    curvature: float,
    damped: bool,
) -> tuple[optax.Updates, VectorFreeLbfgsState]:
    s, y = optax.tree.sub((params, gradient), (state.params, state.gradient))
    gram = grown(state.gram, state.taken, (state.s, state.y), (s, y, gradient))
    if damped:
        y, gram = damp(s, y, gram, curvature)
    good = (state.count > 0) & (gram[-3, -2] > curvature * gram[-3, -3])
    # This condition needs all dot products, so XLA can overwrite the stacks in place after them.
    good &= jnp.isfinite(gram[-3:-1]).all()
    gram = chosen(gram, good)
    slot, taken = state.taken % (len(state.gram) // 2), state.taken + good
    stacks = jax.tree.map(
        lambda old, new: old.at[slot].set(jnp.where(good, new, old[slot])),
        (state.s, state.y), (s, y),
    )  # fmt: skip
    length = jnp.where(taken > 0, 1, jnp.minimum(1, jax.lax.rsqrt(gram[-1, -1])))
    direction = combined(-length * direction_coefficients(gram), taken, stacks, gradient)
    count, (s, y) = optax.safe_increment(state.count), stacks
    return direction, VectorFreeLbfgsState(count, taken, params, gradient, s, y, gram[:-1, :-1])


def grown(
    gram: jax.Array, taken: jax.Array, stacks: tuple[Any, Any], new: tuple[Vector, ...]
) -> jax.Array:
    """Extends a Gram matrix by the dot products of a new s, a new y and the gradient.

    Args:
      gram: the dot products of the pairs in `stacks`, [2 m, 2 m].
      taken: the number of pairs put into `stacks` so far.
      stacks: the stacks of s and of y.
      new: the new s, the new y and the gradient. Only dot products with these are computed.

    Returns:
      The extended matrix, [2 m + 3, 2 m + 3].
    """
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *new)
    border = jnp.concatenate([jnp.roll(_dots(stack, rows), -taken, axis=0) for stack in stacks])
    found: jax.Array = bordered(gram, border, _dots(rows, rows))
    return found


def damp(s: Vector, y: Vector, gram: jax.Array, curvature: float) -> tuple[Vector, jax.Array]:
    """Applies Powell's damping to a new pair if s . y <= curvature |s|^2.

    Powell 1978: y <- theta y + (1 - theta) B s, where B = |y| / |s| I and theta is chosen such
    that s . y becomes 0.2 s . B s.

    Args:
      s: the new s.
      y: the new y.
      gram: the matrix that `grown` returns.
      curvature: the threshold.

    Returns:
      The damped y, and the Gram matrix that belongs to it.
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
    """Drops the oldest pair from `grown`'s matrix if the new pair is good, else the new pair.

    Returns:
      The Gram matrix of m pairs and the gradient, [2 m + 1, 2 m + 1].
    """
    m = (len(gram) - 3) // 2
    rows = jnp.where(good, jnp.array(order(m, leave_out=0)), jnp.array(order(m, leave_out=m)))
    return gram[rows][:, rows]


def combined(
    coefficients: jax.Array, taken: jax.Array, stacks: tuple[Any, Any], gradient: Vector
) -> Vector:
    """Returns the linear combination of the pairs and the gradient.

    Args:
      coefficients: [2 m + 1], in the order of a Gram matrix with the gradient.
      taken: the number of pairs put into `stacks` so far.
      stacks: the stacks of s and of y.
      gradient: the gradient.
    """
    m = len(coefficients) // 2
    of_s, of_y = (jnp.roll(c, taken) for c in (coefficients[:m], coefficients[m:-1]))

    def leaf(s: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        pairs = jnp.tensordot(of_s, s, 1) + jnp.tensordot(of_y, y, 1)
        return (pairs + coefficients[-1] * g).astype(g.dtype)

    return jax.tree.map(leaf, *stacks, gradient)


def _dots(a: Any, b: Any) -> Any:
    """Computes all dot products of stacks [i, ...] and [j, ...] in float32 or wider.

    Real and imaginary parts of complex numbers count as separate parameters.

    Returns:
      The dot products, [i, j].
    """

    def dots(x: jax.Array, y: jax.Array) -> jax.Array:
        dtype, axes = jnp.promote_types(x.dtype, jnp.float32), tuple(range(1, x.ndim))
        return jnp.tensordot(x.conj().astype(dtype), y.astype(dtype), (axes, axes)).real

    return sum(jax.tree.leaves(jax.tree.map(dots, a, b)))
