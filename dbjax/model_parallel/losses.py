# ruff: noqa: F722
"""Losses of logits that are sharded by class over devices.

Devices exchange only a few numbers per example, not the logits. Each loss takes one device's block
of the logits, where the classes are padded at the end (see `dbjax.model_parallel.sharding`). It
runs under `jax.shard_map` and returns the same value on every device.
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
    """Returns the cross-entropy -log softmax(logits)[label] in nats, the mean over the batch.

    Devices exchange three numbers per example.

    Args:
      logits: this device's block of the logits, [batch, block].
      labels: the class of each example, [batch].
      classes: the number of classes, without padding.
      axes: the mesh axes over which the classes are sharded.

    Returns:
      The loss, a scalar; NaN if a label is not the number of a class.
    """
    mine, real = _labels(logits, labels, classes, axes)
    logits = jnp.where(real, logits, -jnp.inf)
    # The largest logit only keeps exp in range, and the loss does not depend on it: no gradient.
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
    """Returns the logistic loss of every class against all others, in nats.

    The loss is summed over the classes, and its mean is taken over the batch. Devices exchange one
    number for the whole batch.

    Args:
      logits: this device's block of the logits, [batch, block].
      labels: the class of each example, [batch].
      classes: the number of classes, without padding.
      axes: the mesh axes over which the classes are sharded.

    Returns:
      The loss, a scalar; NaN if a label is not the number of a class.
    """
    mine, real = _labels(logits, labels, classes, axes)
    each = jnp.where(real, jax.nn.softplus(logits) - jnp.where(mine, logits, 0), 0)
    total: jax.Array = jax.lax.psum(jnp.sum(each), axes)
    return total / len(labels) * nan_unless_classes(labels, classes, logits.dtype)


def nan_unless_classes(labels: Any, classes: int, dtype: Any) -> jax.Array:
    """Returns 1 if every label is the number of a class, otherwise NaN.

    Losses are multiplied by the result. Without it, a label of -1 would count as the last class or
    as no class at all. (`dbjax.Task` rejects such labels before a run if it can tell which of the
    arrays contains labels.)
    """
    labels = labels.astype(jnp.int32)  # uint8 cannot represent the number 256 of classes
    return jnp.where(jnp.all((labels >= 0) & (labels < classes)), 1.0, jnp.nan).astype(dtype)


def penalised(sharding: ModelSharding, l2: float) -> ModelSharding:
    """Returns a sharding whose loss also has l2 / 2 times the sum of squared parameters."""

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
    """Returns masks of the logits that belong to the label, and of those that are not padding."""
    block = logits.shape[-1]
    numbers = jax.lax.axis_index(axes) * block + jnp.arange(block)
    return numbers[None, :] == labels[:, None], (numbers < classes)[None, :]
