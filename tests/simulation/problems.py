"""Small problems of which everything is known, exactly."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dbjax
from dbjax.parameter_server import partition_params
from dbjax.parameter_server.partition import compiled_split

RATE = 0.125
RULE = optax.sgd(RATE)
PARAMS = {"a": jnp.zeros(4), "b": jnp.zeros(3)}
NUMBERS = np.random.default_rng(0).permutation(np.arange(1.0, 97.0, dtype=np.float32))
POINTS = np.random.default_rng(1).normal(size=(24, 7)).astype(np.float32)
CURVATURE = np.geomspace(1, 20, 7).astype(np.float32)
PORTION = 2  # examples


def counted(params, batch):
    """The gradient of every parameter is the number in the batch, negative: sums are exact."""
    return -jnp.mean(batch) * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


def bowl(params, batch):
    """A quadratic in every parameter by itself: each shard's gradient is known by itself."""
    curvature, point = _tree(CURVATURE), {"a": batch[:, :4], "b": batch[:, 4:]}
    return sum(
        0.5 * jnp.mean(jnp.sum(curvature[k][None] * (params[k][None] - point[k]) ** 2, axis=1))
        for k in params
    )


COUNTED = dbjax.Task(PARAMS, counted, NUMBERS, batch_size=1)
BOWL = dbjax.Task(PARAMS, bowl, POINTS, batch_size=PORTION)


def number(replica: int, replicas: int, step: int) -> float:
    """The number in a replica's mini-batch."""
    return float(COUNTED.batches(replica, replicas).at(step)[0])


def bowl_gradient(shards: int, shard: int, params: dict, portions: set[int]) -> dict:
    """Of the mean over portions, a shard's slice of it."""
    centre = np.mean(np.concatenate([BOWL.portions.gather((p,)) for p in portions]), axis=0)
    point, curvature = (_slices(shards)(_tree(x))[shard] for x in (centre, CURVATURE))
    return {k: np.asarray(curvature[k] * (value - point[k])) for k, value in params.items()}


@functools.cache
def _slices(shards: int):
    return compiled_split(partition_params(PARAMS, shards))


def _tree(values):
    return {"a": jnp.asarray(values[:4]), "b": jnp.asarray(values[4:])}
