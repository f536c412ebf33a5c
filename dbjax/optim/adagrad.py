"""Adagrad as Downpour's shards apply it.

Dean et al. 2012, section 4.1, after Duchi, Hazan & Singer 2011. For parameter i, after K
updates: rate = gamma / sqrt(sum over j = 1..K of (gradient_ij)^2), the current gradient
included. Only local information is needed, so every shard does it alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class DownpourAdagradState(NamedTuple):
    """What a shard keeps.

    Attributes:
      count: updates so far, a scalar int32; what a schedule of gamma is asked for.
      sum_of_squares: like the parameters; float32, or float64 for float64 parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; hides tuple.count
    sum_of_squares: optax.Updates


def downpour_adagrad(
    gamma: optax.ScalarOrSchedule, *, initial_accumulator: float = 0.0, epsilon: float = 0.0
) -> optax.GradientTransformation:
    """Adagrad with the current gradient in the sum: update = -rate * gradient, where
    rate = gamma / (sqrt(initial_accumulator + sum of squares) + epsilon).

    Paper: section 4.1. The defaults are its literal form, where the first update of a
    parameter has size gamma whatever the gradient; a rate whose root is 0 counts as 0, so
    a parameter that never had a gradient stays put. Every parameter is treated by itself:
    on slices the rule does what it does on the whole.

    An `initial_accumulator` makes the first updates smaller, and hides gradients that are
    small against its root: with optax's and TensorFlow's 0.1, gradients of about 0.001, as
    a mean over a mini-batch has, are noticed after some 100,000 updates; until then this
    is SGD at the rate gamma / sqrt(0.1). Choose it near the square of a typical gradient.

    Squares are summed in float32 at least: a bfloat16 sum stops growing once it is 256
    times the next square. A float32 square underflows for gradients below about 1e-19,
    which then do not move their parameter, and overflows above 1e19, which stops it for
    good.

    Differs from `optax.adagrad`: its eps stands inside the root, where ours is added to it;
    its defaults are initial_accumulator_value=0.1 and eps=1e-7; it sums in the dtype of
    the parameters. With both of them 0 the two agree to rounding.

    Args:
      gamma: the rate, perhaps ten times the best fixed one (section 4.1), or an optax
        schedule: number of earlier updates -> rate.
      initial_accumulator: what the sum of squares starts from.
      epsilon: added to the root.

    Raises:
      ValueError: an argument is negative, not finite or no number.
    """
    if not callable(gamma):
        _require_rate("gamma", gamma)
    _require_rate("initial_accumulator", initial_accumulator)
    _require_rate("epsilon", epsilon)

    def init(params: optax.Params) -> DownpourAdagradState:
        def start(p: jax.Array) -> jax.Array:
            return jnp.full_like(p, initial_accumulator, dtype=_sum_dtype(p))

        return DownpourAdagradState(jnp.zeros((), jnp.int32), jax.tree.map(start, params))

    def update(
        updates: optax.Updates, state: DownpourAdagradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, DownpourAdagradState]:
        del params
        total = jax.tree.map(
            lambda g, s: s + jnp.square(g.astype(s.dtype)), updates, state.sum_of_squares
        )
        gamma_now = gamma(state.count) if callable(gamma) else gamma

        def step(g: jax.Array, s: jax.Array) -> jax.Array:
            root = jnp.sqrt(s) + epsilon
            rate = jnp.where(root > 0, gamma_now / jnp.where(root > 0, root, 1), 0)
            return (-rate * g.astype(s.dtype)).astype(g.dtype)

        count = optax.safe_increment(state.count)
        return jax.tree.map(step, updates, total), DownpourAdagradState(count, total)

    return optax.GradientTransformation(init, update)


def _sum_dtype(param: jax.Array) -> Any:
    return jnp.float64 if param.dtype == jnp.float64 else jnp.float32


def _require_rate(name: str, value: Any) -> None:
    """Raises unless `value` is a finite number of at least 0, or traced by jit."""
    if isinstance(value, jax.core.Tracer):  # as from optax.inject_hyperparams
        return
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iuf" or not 0 <= array < np.inf:
        raise ValueError(f"downpour_adagrad: {name}={value!r} must be a finite number >= 0")
