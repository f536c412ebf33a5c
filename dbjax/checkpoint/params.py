"""Parameters alone, for whoever wants nothing else of a run."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from dbjax.types import Params


def save_params(path: Path, params: Params) -> None:
    """An Orbax checkpoint; atomic."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, params), force=True)


def load_params(path: Path, like: Params) -> Params:
    """Reads what `save_params` wrote, into the structure of `like`."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), jax.tree.map(np.asarray, like))
