"""Saves and loads parameters alone, without the rest of a run's state."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dbjax.checkpoint.digests import require_whole, write_digests
from dbjax.checkpoint.encoding import storable
from dbjax.errors import one_line
from dbjax.types import Params

_OVERHEAD_BYTES = 50_000  # the size of what Orbax writes in addition to the arrays


def save_params(path: str | Path, params: Params) -> None:
    """Saves parameters in a directory: an Orbax checkpoint of the leaves, and digests of its files.

    An existing directory is replaced only when the new one is complete.

    Args:
      path: the directory.
      params: the parameters, a pytree of arrays.

    Raises:
      OSError: the directory cannot be written; the message names it.
    """
    import orbax.checkpoint as ocp

    path = Path(path)
    part, leaves = path.absolute().with_name(f".{path.name}"), _not_empty(_leaves(params))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # otherwise Orbax waits for it for minutes
        _require_room(path.parent, sum(leaf.nbytes for leaf in leaves.values()))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(part, jax.tree.map(storable, leaves), force=True)
        write_digests(part)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    except Exception as error:
        for left in part.parent.glob(f"{part.name}*"):
            shutil.rmtree(left, ignore_errors=True)
        message = f"the parameters cannot be written ({one_line(error)})"
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, message, str(path)) from error
        raise OSError(f"{message}: {str(path)!r}") from error


def _require_room(directory: Path, size: int) -> None:
    """Raises OSError if the disk is full: Orbax would log pages of errors from its threads."""
    with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + _OVERHEAD_BYTES)


def load_params(path: str | Path, like: Params) -> Params:
    """Loads parameters that `save_params` wrote.

    Args:
      path: the directory.
      like: a pytree of arrays with the structure, shapes and dtypes of the parameters.

    Returns:
      The parameters, a pytree of NumPy arrays with the structure of `like`.

    Raises:
      ValueError: the directory does not exist or is damaged, or the parameters have other names,
        shapes or dtypes than `like`; the message names the file, or the first difference.
    """
    import orbax.checkpoint as ocp

    path = Path(path)
    if not path.is_dir():
        raise ValueError(
            f"{str(path)!r} is not a directory of parameters: give the directory `params` of a run"
        )
    require_whole(path)
    leaves = _leaves(like)
    wanted = jax.tree.map(storable, _not_empty(leaves))
    with ocp.StandardCheckpointer() as checkpointer:
        about: Any = checkpointer.metadata(path.absolute())
        _require_same(path, about.item_metadata.tree, wanted)
        found = checkpointer.restore(path.absolute(), wanted)
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [np.asarray(found.get(name, leaf)).view(leaf.dtype) for name, leaf in leaves.items()],
    )


def _leaves(params: Params) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path) or "params": np.asarray(leaf) for path, leaf in found}


def _not_empty(leaves: dict[str, Any]) -> dict[str, Any]:
    """Drops empty arrays, which Orbax cannot save; it cannot save an empty dict, either."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size} or {"nothing": np.zeros(1)}


def _require_same(path: Path, have: dict[str, Any], want: dict[str, Any]) -> None:
    """Raises ValueError if shapes or dtypes differ: Orbax silently casts, truncates and pads."""
    for name in {**want, **have}:
        there, here = (
            f"{leaf.dtype}{list(leaf.shape)}" if (leaf := leaves.get(name)) is not None else "none"
            for leaves in (have, want)
        )  # fmt: skip
        if there != here:
            raise ValueError(f"{str(path)!r} holds other parameters: {name} is {there}, not {here}")
