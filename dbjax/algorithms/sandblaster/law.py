"""How a loss depends on how many examples it is given: found out before a run, by trying.

Sandblaster adds up portions, each weighed by its size, and where time is only modelled it computes
many of them at once. Both are right of a mean over examples. Of a sum they are wrong, and differ
between runtimes. Of a loss that looks at several examples together, as batch normalisation and
contrastive losses do, only the second is wrong: it is computed portion by portion.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.data.stream import dealt
from dbjax.task import Task
from dbjax.types import Batch, LossFn, Params

Law = Literal["mean", "sum", "other"]
_EXAMPLES = 32  # tried at most, in one batch; its double and its triple are tried too
_SHIFT = 0.1  # of the parameters, in shares of their own size


def require_no_sum(task: Task) -> bool:
    """Returns whether the loss of several portions is the mean of theirs, weighed by their sizes.

    Where there is only one portion nothing is tried: it is taken as it is. So is a loss that takes
    a key, of which each portion has its own.

    Raises:
      ValueError: the loss is a sum over the examples of a batch, perhaps with something beside it.
    """
    if task.takes_key:
        return False
    if task.portions.count == 1:
        return True
    law = _law(task)
    if law == "sum":
        raise ValueError(
            "Task.loss is a sum over the examples of a batch: more examples, more loss; portions "
            "of unequal size would count wrongly. Make it a mean: jnp.mean in place of jnp.sum, or "
            "divide by the number of examples in the batch"
        )
    return law == "mean"


def _law(task: Task) -> Law:
    """Of a mean, f(xy) = (f(x) + f(y)) / 2 for batches x and y of one size; with a penalty too.

    Of a sum, f(xyx) - f(xy) = f(yx) - f(y), and not 0: what x adds is the same whatever is there.
    f is the loss, and its derivative along some direction: at parameters where all examples have
    the same loss their gradients differ.
    """
    size = min(task.batch_size, len(task.examples) // 2, _EXAMPLES)
    order = dealt(len(task.examples), task.seed)
    x, y = order[:size], order[size : 2 * size]
    in_x, in_y, in_xy, in_yx, in_xyx = (
        jax.tree.map(jnp.asarray, task.examples.gather(np.concatenate(parts)))
        for parts in ((x,), (y,), (x, y), (y, x), (x, y, x))
    )
    f, tolerance = functools.partial(_tried, task.loss, task.start()), _tolerance(task)
    try:
        fx, fy, fxy = f(in_x), f(in_y), f(in_xy)
        apart, scale = np.abs(2 * fxy - fx - fy), np.abs(fx) + np.abs(fy)
        if apart[0] <= tolerance * scale[0] and apart[1] <= tolerance * scale[2]:
            return "mean"
        first, second = f(in_xyx) - fxy, f(in_yx) - fy
    except Exception:  # a loss for batches of one size only
        return "other"
    same = np.abs(first - second) <= tolerance * (np.abs(first) + np.abs(second))
    more = np.abs(first) > tolerance * np.abs(fxy)
    return "sum" if (same & more)[:2].all() else "other"


def _tried(loss: LossFn, params: Params, batch: Batch) -> Any:
    """[3]: the loss, its derivative along a direction, the norm of its gradient."""
    found = np.asarray(_probe(loss)(params, batch, _SHIFT), np.float64)
    if not np.isfinite(found).all():  # shifted parameters may be none that the loss can take
        found = np.asarray(_probe(loss)(params, batch, 0.0), np.float64)
    return found


def _tolerance(task: Task) -> float:
    """Half of the digits: rounding takes some, and what is no mean is off in the first ones.

    Sums of `n` numbers in another order differ by about sqrt(n) units in the last place, more where
    they cancel; what two examples do to each other changes a loss by a share of itself.
    """
    steps = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(task.shapes)]
    return math.sqrt(max(steps))


@functools.lru_cache(maxsize=16)
def _probe(loss: LossFn) -> jax.stages.Wrapped:
    """(params, batch, shift) -> loss, derivative along a direction, norm of the gradient.

    At shifted parameters: at the initial ones much may vanish, such as all that is multiplied with
    a layer that is zero at first.
    """

    def direction(leaf: jax.Array, turn: float) -> jax.Array:
        numbers = jax.lax.iota(jnp.float32, leaf.size).reshape(leaf.shape)
        return jnp.sin(turn * (numbers + 1))  # any will do, if nothing in the loss is like it

    def shifted(leaf: jax.Array, shift: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32))))
        step = shift * jnp.where(size > 0, size, 1) * direction(leaf, 1.7)
        return leaf + step.astype(leaf.dtype)

    @jax.jit
    def probe(params: Params, batch: Any, shift: jax.Array) -> jax.Array:
        there = jax.tree.map(lambda leaf: shifted(leaf, shift), params)
        value, gradient = jax.value_and_grad(loss)(there, batch)
        wide = [_at_least_float32(leaf) for leaf in jax.tree.leaves(gradient)]
        along = sum(jnp.sum(leaf * direction(leaf, 2.3)) for leaf in wide)
        square = sum(jnp.sum(jnp.square(leaf)) for leaf in wide)
        return jnp.stack([_at_least_float32(value), along, jnp.sqrt(square)])

    return probe


def _at_least_float32(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
