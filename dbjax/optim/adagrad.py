"""Adagrad as the shards of Downpour SGD apply it.

Dean et al. 2012, section 4.1, after Duchi, Hazan & Singer 2011. The learning rate of parameter i
after K updates is gamma / sqrt(sum over j = 1..K of (gradient_ij)^2), where the sum includes the
current gradient. The rule needs only local information, so each shard applies it independently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class DownpourAdagradState(NamedTuple):
    """The state that `downpour_adagrad` keeps on a shard.

    Attributes:
      count: the number of updates so far, a scalar int32. A schedule for gamma is called with it.
      sum_of_squares: the sum of squared gradients, a pytree with the structure and shapes of the
        parameters. It is float32, or float64 for float64 parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; hides tuple.count
    sum_of_squares: optax.Updates


def downpour_adagrad(
    gamma: optax.ScalarOrSchedule, *, initial_accumulator: float = 0.0, epsilon: float = 0.0
) -> optax.GradientTransformation:
    """Returns the Adagrad rule of the paper, which includes the current gradient in its sum.

    The update is -rate * gradient, where
    rate = gamma / (sqrt(initial_accumulator + sum of squares) + epsilon).

    Paper: section 4.1. The defaults give its literal form, in which the first update of a
    parameter has size gamma whatever the gradient is. Where the denominator is 0 the rate is 0,
    so a parameter that has never had a gradient does not move. The rule is elementwise: it gives
    the same updates on slices of the parameters as on the whole.

    A positive `initial_accumulator` makes the first updates smaller, and it hides gradients that
    are small compared with its root. With 0.1, the default of optax and TensorFlow, gradients of
    about 0.001, typical of a mean over a mini-batch, have an effect only after some 100,000
    updates; until then the rule is SGD with learning rate gamma / sqrt(0.1). Choose a value near
    the square of a typical gradient.

    Squares are summed in float32 or wider, because a bfloat16 sum stops growing once it is 256
    times the next square. A float32 square underflows for gradients below about 1e-19, which
    then do not move their parameter. It overflows for gradients above 1e19, after which the
    parameter never moves again.

    Differs from `optax.adagrad`: optax adds its eps inside the root, this rule adds epsilon to
    the root; optax's defaults are initial_accumulator_value=0.1 and eps=1e-7; and optax sums in
    the dtype of the parameters. If the accumulator and epsilon are both 0, the two rules agree to
    rounding.

    Args:
      gamma: the learning rate, perhaps ten times the best fixed learning rate (section 4.1), or
        an optax schedule that maps the number of earlier updates to a learning rate.
      initial_accumulator: the initial value of each sum of squares.
      epsilon: a constant added to the root.

    Returns:
      An optax gradient transformation with a `DownpourAdagradState`.

    Raises:
      ValueError: an argument is negative, not finite or not a number.
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
    """Raises ValueError unless `value` is a finite number >= 0, or is being traced by jit."""
    if isinstance(value, jax.core.Tracer):  # as from optax.inject_hyperparams
        return
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iuf" or not 0 <= array < np.inf:
        raise ValueError(f"downpour_adagrad: {name}={value!r} must be a finite number >= 0")
