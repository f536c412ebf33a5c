"""How a loss depends on how many examples it is given: found out before a run, by trying.

Sandblaster adds up portions, each weighed by its size, and where time is only modelled it computes
many of them at once. Both are right of a mean over examples. Of a sum they are wrong, and differ
between runtimes. Of a loss that looks at several examples together, as batch normalisation and
contrastive losses do, only the second is wrong: it is computed portion by portion.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.data.stream import dealt
from dbjax.task import Task
from dbjax.types import Batch, LossFn, Params

Reduction = Literal["mean", "sum", "other"]
_EXAMPLES = 16  # tried at most, in one block
_BLOCKS = 5
_SHIFT = 0.1  # of the parameters, in shares of their own size


def require_mean_loss(task: Task) -> bool:
    """Returns whether the loss of several portions is the mean of theirs, weighed by their sizes.

    Where there is only one portion nothing is tried: it is taken as it is. Nor is a loss that takes
    a key, of which each portion has its own.

    Raises:
      ValueError: the loss is a sum over the examples of a batch, perhaps with something beside it.
    """
    if task.takes_key:
        return False
    if task.portions.count == 1:
        return True
    reduction = _reduction(task)
    if reduction == "sum":
        raise ValueError(
            "Task.loss is a sum over the examples of a batch: more examples, more loss; portions "
            "of unequal size would count wrongly. Make it a mean: jnp.mean in place of jnp.sum, or "
            "divide by the number of examples in the batch"
        )
    return reduction == "mean"


def _reduction(task: Task) -> Reduction:
    """Tried on blocks a, b, ... of examples, all of one size.

    Of a sum or a mean, also with a penalty, f(ab) = (f(aa) + f(bb)) / 2. Only of a mean f(aa) =
    f(a). f is the loss, and for the first of these its derivative along some direction too: where
    all examples have nearly the same loss, their gradients differ.
    """
    size = min(task.batch_size, len(task.examples) // 2, _EXAMPLES)
    order, count = (
        dealt(len(task.examples), task.portions.seed),
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
    except Exception:  # a loss for batches of one size only
        return "other"
    if not np.isfinite([*np.ravel(of_twice), *np.ravel(of_mixed), of_once]).all():
        return "other"  # nothing can be told
    for found, pair in zip(of_mixed, itertools.pairwise(of_twice), strict=True):
        apart, (loss, _, norm) = np.abs(2 * found - sum(pair)), np.abs(pair).sum(0)
        if not (apart[0] <= tolerance * loss and apart[1] <= tolerance * norm):
            return "other"
    return "mean" if abs(of_twice[0][0] - of_once) <= tolerance * abs(of_once) else "sum"


def _batch(task: Task, *blocks: Any) -> Batch:
    return jax.tree.map(jnp.asarray, task.examples.gather(np.concatenate(blocks)))


def _tolerance(task: Task) -> float:
    """Half of the digits: rounding takes some, and what is no mean is off in the first ones.

    Sums of `n` numbers in another order differ by about sqrt(n) units in the last place, more where
    they cancel; what two examples do to each other changes a loss by a share of itself.
    """
    steps = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(task.shapes)]
    return math.sqrt(max(steps))


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """(params, batch, shift) -> the loss; and, [3], with its derivative and its gradient's norm.

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
