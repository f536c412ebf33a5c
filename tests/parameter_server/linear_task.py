"""A loss linear in the parameters, whole and cut: updates in any order end at the same ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import dbjax
from dbjax.model_parallel.sharding import ModelSharding, axes_of

# One is cut along both axes of the mesh, one along each, one along one, two not at all.
SHAPES = {"w": (6, 5), "v": (4, 9), "half": (5,), "whole": (3,), "scalar": ()}
RULES = (
    ("w", P(None, ("a", "b"))),
    ("v", P("b", "a")),
    ("half", P("b")),
    ("whole|scalar", P()),
)


def integers(random, *shape):
    """Small ones: their sums and means over 8 are exact, in any order."""
    return np.float32(random.integers(-4, 5, size=shape))


def linear(params, batch):
    """Its gradient is the same at all parameters."""
    return sum(jnp.sum(p * jnp.mean(batch[name], axis=0)) for name, p in params.items())


def linear_cut(rows):
    """The same over rows * 2 devices; what several of them hold, the last of them counts."""
    axes = {"a": rows, "b": 2}

    def loss(params, batch):
        total = 0.0
        for name in SHAPES:
            spec = sharding.spec(name)
            block, mine = params[name], jnp.mean(batch[name], axis=0)
            for dim, cut_along in enumerate(spec):
                size, along = block.shape[dim], axes_of(P(cut_along))
                end = size * math.prod(axes[axis] for axis in along)
                mine = jnp.pad(
                    mine, [(0, (d == dim) * (end - n)) for d, n in enumerate(mine.shape)]
                )
                begin = jax.lax.axis_index(along) * size if along else 0
                mine = jax.lax.dynamic_slice_in_dim(mine, begin, size, dim)
            value = jnp.sum(block * mine)
            for axis in axes:  # a set's order would differ in the processes of a replica
                if axis not in axes_of(spec):
                    value = jnp.where(jax.lax.axis_index(axis) == axes[axis] - 1, value, 0)
            total += jax.lax.psum(value, tuple(axes))
        return total

    sharding = ModelSharding(tuple(axes.items()), RULES, loss)
    return sharding


def linear_task():
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(integers(random, *shape)) for name, shape in SHAPES.items()}
    data = {name: integers(random, 96, *shape) for name, shape in SHAPES.items()}
    return dbjax.Task(params, linear, data, batch_size=8)
