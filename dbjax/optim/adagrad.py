"""Adagrad as Downpour's shards apply it.

Dean et al. 2012, section 4.1, after Duchi, Hazan & Singer 2011. For parameter i, after K
updates: rate = gamma / sqrt(sum over j = 1..K of (gradient_ij)^2), the current gradient
included. Only local information is needed, so every shard does it alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class SumOfSquares(NamedTuple):
    """State of `scale_by_sum_of_squares`: like the parameters, and in their dtype."""

    sum_of_squares: optax.Updates


def downpour_adagrad(
    gamma: optax.ScalarOrSchedule, *, initial_accumulator: float = 0.1, epsilon: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """update = -gamma * gradient / (sqrt(initial_accumulator + sum of squares) + epsilon).

    The paper's own form is `initial_accumulator=0, epsilon=0`; its first update of a
    parameter has size gamma whatever the gradient, so a gamma that is good later can be
    too large at the start: hence the default accumulator (that of TensorFlow's Adagrad).

    Differs from `optax.adagrad` in epsilon, which there stands inside the square root.

    Args:
      gamma: perhaps ten times the best fixed rate (section 4.1); or a schedule of it.
      initial_accumulator: what the sum of squares starts from, at least 0.
      epsilon: added to the root, at least 0.

    Raises:
      ValueError: an argument is negative, or not finite.
    """
    if not callable(gamma) and not (math.isfinite(float(gamma)) and float(gamma) >= 0):
        raise ValueError(f"downpour_adagrad: gamma={gamma} must be finite and at least 0")
    return optax.chain(
        scale_by_sum_of_squares(initial_accumulator, epsilon), optax.scale_by_learning_rate(gamma)
    )


def scale_by_sum_of_squares(
    initial_accumulator: float, epsilon: float
) -> optax.GradientTransformation:
    """Divides each gradient by sqrt(sum of its squares so far) + epsilon; 0 / 0 is 0."""
    for name, value in (("initial_accumulator", initial_accumulator), ("epsilon", epsilon)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"downpour_adagrad: {name}={value} must be finite and at least 0")

    def init(params: optax.Params) -> SumOfSquares:
        return SumOfSquares(jax.tree.map(lambda p: jnp.full_like(p, initial_accumulator), params))

    def update(
        updates: optax.Updates, state: SumOfSquares, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SumOfSquares]:
        del params
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        return jax.tree.map(_divided, updates, total), SumOfSquares(total)

    def _divided(g: jax.Array, total: jax.Array) -> jax.Array:
        root = jnp.sqrt(total) + epsilon
        return jnp.where(root > 0, g / jnp.where(root > 0, root, 1), 0).astype(g.dtype)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
