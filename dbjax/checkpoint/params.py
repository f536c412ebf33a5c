"""Parameters alone, for whoever wants nothing else of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dbjax.parallel.cut import keys_of
from dbjax.types import Params


def save_params(path: Path, params: Params) -> None:
    """An Orbax checkpoint, of nested dicts with the keys of the parameters' paths; atomic."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), _dicts(params), force=True)


def load_params(path: Path, like: Params) -> Params:
    """Reads what `save_params` wrote, into the structure of `like`."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path.absolute(), _dicts(like))
    leaves = [functools.reduce(dict.__getitem__, keys, found) for keys, _ in _leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _dicts(params: Params) -> dict[str, Any]:
    """Whatever nodes the parameters are made of, as dicts, which Orbax can hold."""
    found: dict[str, Any] = {}
    for (*above, last), leaf in _leaves(params):
        node = found
        for key in above:
            node = node.setdefault(key, {})
        node[last] = np.asarray(leaf)
    return found


def _leaves(params: Params) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield keys_of(path), leaf
