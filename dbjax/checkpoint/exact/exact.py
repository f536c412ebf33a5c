"""Takes the exact state of a virtual run, and resumes a run from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from dbjax.checkpoint.encoding import Array, ArrayTable
from dbjax.checkpoint.exact.freeze import Freezer
from dbjax.checkpoint.exact.names import Names
from dbjax.checkpoint.exact.ours import add_package_of
from dbjax.checkpoint.exact.thaw import thaw
from dbjax.checkpoint.trees import Structures
from dbjax.runtime.virtual import VirtualRuntime

_PACKAGES = ("jax", "jaxlib", "numpy", "optax")


@dataclasses.dataclass(frozen=True)
class ExactState:
    """The exact state of a virtual run between two events.

    Attributes:
      program: a digest of the program and of the software that it depends on.
      nodes: the table of objects, see `freeze`.
      arrays: the arrays that the table refers to.
    """

    program: str
    nodes: Sequence[Any]
    arrays: Sequence[Array]


@final
class ExactResume:
    """Takes the exact state of a virtual run, or resumes the run from such a state.

    Args:
      runtime: the runtime, which must keep journals; its program is placed but does not run yet.
      config: the config of the algorithm; checkpoints may name code of its package.
      structures: the nodes of the program's pytrees.
    """

    def __init__(self, runtime: VirtualRuntime, config: Any, structures: Structures) -> None:
        add_package_of(type(config).__module__)
        self._runtime, self._names, self._structures = runtime, Names(runtime), structures
        self._program = f"{self._names.digest} {software_digest()}"

    def take(self, arrays: ArrayTable) -> ExactState:
        """Takes the state between two events, without changing the run.

        Args:
          arrays: the table that the state's arrays are added to.

        Raises:
          TypeError: an object has a type that a checkpoint cannot hold; the message names it.
        """
        unsettled = itertools.chain(*(journal.watched() for journal in self._runtime.journals()))
        nodes = Freezer(self._names, arrays, unsettled).table(self._runtime)
        return ExactState(self._program, nodes, arrays.values)

    def fits(self, state: ExactState) -> bool:
        """Returns whether a state has the same program, data shapes, cluster and versions."""
        return state.program == self._program

    def resume(self, state: ExactState) -> None:
        """Restores a state, so that the runtime continues from there.

        Args:
          state: the state, for which `fits` must be true.

        Raises:
          ValueError: it is not the state of a run.
          ReplayError: it is the state of another program.
        """
        thaw(state.nodes, state.arrays, self._names, self._structures)
        self._runtime.fast_forward()


@functools.cache
def software_digest() -> str:
    """Returns a digest of the software that results depend on: Python, packages, and dbjax."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in _PACKAGES:
        digest.update(importlib.metadata.version(name).encode())
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
