"""Tests before a run whether a loss is a mean or a sum over the examples of a batch.

Sandblaster adds up the losses of portions, each weighted by its size. Where time is modelled, it
also computes many portions at once. Both are correct if the loss is a mean over examples. If it is
a sum, both give wrong results, which also differ between runtimes. If the loss of an example
depends on other examples, as with batch normalisation and contrastive losses, only the second is
wrong; such a loss is computed portion by portion.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.data.stream import shuffled_order
from dbjax.task import Task
from dbjax.types import Batch, LossFn, Params

Reduction = Literal["mean", "sum", "other"]
_EXAMPLES = 16  # the maximum number of examples in a block
_BLOCKS = 5  # the maximum number of blocks
_SHIFT = 0.1  # the shift of the parameters, relative to the root mean square of each leaf


def require_mean_loss(task: Task) -> bool:
    """Checks that the loss of a task is not a sum over the examples of a batch.

    The loss is not evaluated if there is only one portion, which is used as it is, or if the loss
    takes a random key, since each portion has its own key.

    Args:
      task: the training task.

    Returns:
      Whether the loss of several portions is the mean of their losses, weighted by their sizes.

    Raises:
      ValueError: the loss is a sum over the examples of a batch, perhaps plus a penalty.
    """
    if task.takes_key:
        return False
    if task.portions.count == 1:
        return True
    reduction = _reduction(task)
    if reduction == "sum":
        raise ValueError(
            "Task.loss is a sum over the examples of a batch: it grows with the number of "
            "examples, so portions of unequal size would count wrongly. Make it a mean: use "
            "jnp.mean in place of jnp.sum, or divide by the number of examples in the batch"
        )
    return reduction == "mean"


def _reduction(task: Task) -> Reduction:
    """Classifies the loss f by evaluating it on blocks a, b, ... of examples, all of one size.

    For a sum or a mean, also with a penalty, f(ab) = (f(aa) + f(bb)) / 2. Only for a mean
    f(aa) = f(a). The first equation is also tested for the derivative of f along some direction:
    if all examples have nearly the same loss, their gradients still differ.
    """
    size = min(task.batch_size, len(task.examples) // 2, _EXAMPLES)
    order, count = (
        shuffled_order(len(task.examples), task.portions.seed),
        min(_BLOCKS, len(task.examples) // size),
    )
    blocks = [order[i * size : (i + 1) * size] for i in range(count)]
    once, *twice = (_batch(task, *same) for same in (blocks[:1], *zip(blocks, blocks, strict=True)))
    mixed = [_batch(task, *pair) for pair in itertools.pairwise(blocks)]
    params, tolerance, (value, all_of_it) = task.start(), _tolerance(task), _compiled(task.loss)
    try:
        shift = _SHIFT if np.isfinite(all_of_it(params, twice[0], _SHIFT)).all() else 0.0
        of_twice, of_mixed = (
            [np.asarray(all_of_it(params, batch, shift), np.float64) for batch in batches]
            for batches in (twice, mixed)
        )
        of_once = float(value(params, once, shift))
    except Exception:  # the loss works only for batches of one size
        return "other"
    if not np.isfinite([*np.ravel(of_twice), *np.ravel(of_mixed), of_once]).all():
        return "other"  # the test is inconclusive
    for found, pair in zip(of_mixed, itertools.pairwise(of_twice), strict=True):
        apart, (loss, _, norm) = np.abs(2 * found - sum(pair)), np.abs(pair).sum(0)
        if not (apart[0] <= tolerance * loss and apart[1] <= tolerance * norm):
            return "other"
    return "mean" if abs(of_twice[0][0] - of_once) <= tolerance * abs(of_once) else "sum"


def _batch(task: Task, *blocks: Any) -> Batch:
    return jax.tree.map(jnp.asarray, task.examples.gather(np.concatenate(blocks)))


def _tolerance(task: Task) -> float:
    """Returns a relative tolerance of half the digits of the parameters' coarsest dtype.

    Rounding affects the last digits, whereas a loss that is not a mean differs in the first ones.
    Sums of n numbers in another order differ by about sqrt(n) units in the last place, or more if
    the numbers cancel. An interaction between examples changes the loss by a fraction of itself.
    """
    steps = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(task.shapes)]
    return math.sqrt(max(steps))


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Compiles the loss at shifted parameters, without and with derivatives.

    At the initial parameters much may vanish, such as everything that is multiplied by a layer that
    is initialised to zero.

    Returns:
      Two functions of (params, batch, shift). The first returns the loss. The second returns an
      array [3] of the loss, its derivative along a direction, and the norm of its gradient.
    """

    def direction(leaf: jax.Array, turn: float) -> jax.Array:
        numbers = jax.lax.iota(jnp.float32, leaf.size).reshape(leaf.shape)
        return jnp.sin(turn * (numbers + 1))  # an arbitrary direction that no loss resembles

    def shifted(leaf: jax.Array, shift: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32))))
        step = shift * jnp.where(size > 0, size, 1) * direction(leaf, 1.7)
        return leaf + step.astype(leaf.dtype)

    def there(params: Params, shift: jax.Array) -> Params:
        return jax.tree.map(lambda leaf: shifted(leaf, shift), params)

    @jax.jit
    def value(params: Params, batch: Batch, shift: jax.Array) -> jax.Array:
        return loss(there(params, shift), batch)

    @jax.jit
    def all_of_it(params: Params, batch: Batch, shift: jax.Array) -> jax.Array:
        value, gradient = jax.value_and_grad(loss)(there(params, shift), batch)
        wide = [_at_least_float32(leaf) for leaf in jax.tree.leaves(gradient)]
        along = sum(jnp.sum(leaf * direction(leaf, 2.3)) for leaf in wide)
        square = sum(jnp.sum(jnp.square(leaf)) for leaf in wide)
        return jnp.stack([_at_least_float32(value), along, jnp.sqrt(square)])

    return value, all_of_it


def _at_least_float32(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
