"""L-BFGS as optax transforms: one reduction per direction, for parameters that are sharded.

The two-loop recursion takes 2 m dot products one after another, and on sharded parameters
each is a round of communication. Here all dot products are taken at once, and the recursion
is carried out on coefficients (Chen, Wang & Zhou 2014, "Large-scale L-BFGS using
MapReduce").
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
    """What is known of the last m pairs: changes s of the parameters, y of the gradient.

    Attributes:
      count: updates so far, a scalar int32.
      taken: pairs taken so far, a scalar int32; pair k lies at k mod m.
      params: those of the last update.
      gradient: that of the last update, like the parameters.
      s: like the parameters, stacked [m, ...]; zeros where there is no pair yet.
      y: like s.
      gram: [2 m, 2 m] dot products of s and y, each oldest first, absent ones before them.
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
    """L-BFGS with a line search; a drop-in for `optax.lbfgs`, and used as it is.

    `update` needs params, value, grad and value_fn; `optax.value_and_grad_from_state` saves
    the evaluation the line search has already made. For the other arguments, and the first
    step, see `scale_by_vector_free_lbfgs`.
    """
    direction = scale_by_vector_free_lbfgs(memory, curvature, damped)
    chain = optax.chain(direction, optax.scale(-1.0), linesearch)

    def init(params: optax.Params) -> optax.OptState:
        # optax's zoom starts from weak types and returns others: a step would compile twice.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), chain.init(params))

    return optax.GradientTransformationExtraArgs(init, chain.update)


def scale_by_vector_free_lbfgs(
    memory: int = 10, curvature: float = 1e-10, damped: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Gradient -> H gradient, as `optax.scale_by_lbfgs`; `scale(-1)` makes it a descent.

    Paper: Chen, Wang & Zhou 2014, section 3; Nocedal & Wright 2006, algorithm 7.4, with
    H = s . y / y . y of the newest pair to start from. While there is no pair, H is
    min(1, 1 / |gradient|): a first step of length 1 at most, as optax's.

    Differs from `optax.scale_by_lbfgs`, which takes every pair, whatever its curvature.

    Args:
      memory: pairs that are kept, m.
      curvature: a pair is taken if s . y > curvature |s|^2, else left out.
      damped: mixes such a pair's y with B s first (Powell 1978), until s . y is
        0.2 s . B s, where B is |y| / |s| times the identity.

    Raises:
      ValueError: `memory` is below 1, or `update` is called without params.
    """
    if memory < 1:
        raise ValueError(f"scale_by_vector_free_lbfgs: memory={memory} must be at least 1")

    def init(params: optax.Params) -> VectorFreeLbfgsState:
        def zeros(*stack: int) -> optax.Params:
            """Sharded like params; new ones each time, so that all can be donated."""
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
    # Needing all dot products also lets the stacks be overwritten in place, after them.
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
    """[2 m + 3, 2 m + 3]: `gram` [2 m, 2 m], bordered by the new s, y and gradient.

    Args:
      gram: dot products of the pairs in `stacks`.
      taken: pairs put into `stacks` so far.
      stacks: those of s and of y.
      new: s, y and gradient, the only ones of which dot products are taken.
    """
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *new)
    border = jnp.concatenate([jnp.roll(_dots(stack, rows), -taken, axis=0) for stack in stacks])
    found: jax.Array = bordered(gram, border, _dots(rows, rows))
    return found


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
    rows = jnp.where(good, jnp.array(order(m, leave_out=0)), jnp.array(order(m, leave_out=m)))
    return gram[rows][:, rows]


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
