"""Parameters with the padding of a cut, and how far they are from those without."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from dbjax.model_parallel.sharding import Layout, path_name


def padded(params, sharding, mesh):
    layout = Layout(sharding, params)

    def put(path, leaf):
        shape = layout.padded_shape(path_name(path))
        leaf = np.pad(leaf, [(0, b - a) for a, b in zip(leaf.shape, shape, strict=True)])
        return jax.device_put(leaf, NamedSharding(mesh, sharding.spec(path_name(path))))

    return jax.tree_util.tree_map_with_path(put, params)


def without_padding(array, like):
    return array[tuple(slice(0, n) for n in like.shape)]


def apart(cut_tree, whole_tree):
    """The norm of the difference over the norm, of the leaf where it is largest."""

    def one(a, b):
        return float(np.linalg.norm(without_padding(a, b) - b) / np.linalg.norm(b))

    return max(jax.tree.leaves(jax.tree.map(one, cut_tree, whole_tree)))


def padding(cut_tree, whole_tree):
    """The largest number in the padding."""

    def one(a, b):
        rest = np.array(a)
        without_padding(rest, b)[...] = 0
        return float(np.max(np.abs(rest)))

    return max(jax.tree.leaves(jax.tree.map(one, cut_tree, whole_tree)))
