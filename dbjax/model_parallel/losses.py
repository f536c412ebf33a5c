# ruff: noqa: F722
"""Losses of logits that are cut by class over devices: a few numbers an example travel.

Each takes a device's block of the logits; classes are padded at the end (`dbjax.model_parallel.sharding`).
They run under `jax.shard_map`, and return the same value on every device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dbjax.model_parallel.sharding import ModelSharding, axes_of, path_name
from dbjax.types import Batch, Params


def cross_entropy(
    logits: Float[Array, "batch block"],
    labels: Int[Array, " batch"],
    classes: int,
    axes: tuple[str, ...],
) -> Float[Array, ""]:
    """-log softmax(logits)[label], in nats; mean over the batch. Three numbers an example."""
    mine, real = _labels(logits, labels, classes, axes)
    logits = jnp.where(real, logits, -jnp.inf)
    # The largest logit only keeps exp in range: as a constant it needs no gradient.
    largest = jax.lax.pmax(jnp.max(jax.lax.stop_gradient(logits), axis=-1), axes)
    total = jax.lax.psum(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1), axes)
    at_label = jax.lax.psum(jnp.sum(jnp.where(mine, logits, 0), axis=-1), axes)
    value = jnp.mean(jnp.log(total) + largest - at_label)
    return value * nan_unless_classes(labels, classes, logits.dtype)


def one_against_all(
    logits: Float[Array, "batch block"],
    labels: Int[Array, " batch"],
    classes: int,
    axes: tuple[str, ...],
) -> Float[Array, ""]:
    """Logistic loss of every class against all others, in nats; sum over classes, mean over the
    batch. One number travels.
    """
    mine, real = _labels(logits, labels, classes, axes)
    each = jnp.where(real, jax.nn.softplus(logits) - jnp.where(mine, logits, 0), 0)
    total: jax.Array = jax.lax.psum(jnp.sum(each), axes)
    return total / len(labels) * nan_unless_classes(labels, classes, logits.dtype)


def nan_unless_classes(labels: Any, classes: int, dtype: Any) -> jax.Array:
    """1 if every label is the number of a class, otherwise NaN.

    Otherwise -1 would count as the last class, or as none at all. (`dbjax.Task` refuses such labels
    before a run, if it can tell which of the arrays holds labels.)
    """
    labels = labels.astype(jnp.int32)  # 256 classes are more than uint8 can count
    return jnp.where(jnp.all((labels >= 0) & (labels < classes)), 1.0, jnp.nan).astype(dtype)


def penalised(sharding: ModelSharding, l2: float) -> ModelSharding:
    """The same with l2 / 2 times the sum of squared parameters in its loss."""

    def loss(params: Params, batch: Batch) -> jax.Array:
        value = sharding.loss(params, batch)
        for path, block in jax.tree_util.tree_leaves_with_path(params):
            squares = jnp.sum(jnp.square(block))
            axes = axes_of(sharding.spec(path_name(path)))
            value += 0.5 * l2 * (jax.lax.psum(squares, axes) if axes else squares)
        return value

    return dataclasses.replace(sharding, loss=loss)


def _labels(
    logits: Float[Array, "batch block"],
    labels: Int[Array, " batch"],
    classes: int,
    axes: tuple[str, ...],
) -> tuple[Bool[Array, "batch block"], Bool[Array, "1 block"]]:
    """Which logit is the label's, and which are no padding."""
    block = logits.shape[-1]
    numbers = jax.lax.axis_index(axes) * block + jnp.arange(block)
    return numbers[None, :] == labels[:, None], (numbers < classes)[None, :]
