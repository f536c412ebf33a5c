"""Taking the state of a virtual run, and going on from it."""

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
    """The state of a virtual run between two events.

    Attributes:
      program: a digest of the program that it is of.
      nodes: see `freeze`.
      arrays: that they refer to.
    """

    program: str
    nodes: Sequence[Any]
    arrays: Sequence[Array]


@final
class ExactResume:
    """The state of a virtual run, to be taken and to be gone on from.

    Args:
      runtime: with its program in place, before it runs; it keeps journals.
      config: of the algorithm, whose code is trusted.
      structures: of the program's pytrees.
    """

    def __init__(self, runtime: VirtualRuntime, config: Any, structures: Structures) -> None:
        add_package_of(type(config).__module__)
        self._runtime, self._names, self._structures = runtime, Names(runtime), structures
        self._program = f"{self._names.digest} {_software()}"

    def take(self, arrays: ArrayTable) -> ExactState:
        """Between two events; only looks, so that the run does not notice.

        Raises:
          TypeError: something is of a kind that a checkpoint cannot hold; names it.
        """
        blank = itertools.chain(*(journal.watched() for journal in self._runtime.journals()))
        nodes = Freezer(self._names, arrays, blank).table(self._runtime)
        return ExactState(self._program, nodes, arrays.values)

    def fits(self, state: ExactState) -> bool:
        """Whether it is of the same program, data's shapes, cluster, versions."""
        return state.program == self._program

    def resume(self, state: ExactState) -> None:
        """From now on the runtime is where it was then.

        Raises:
          ValueError: it is no such state.
          ReplayError: it is of another program.
        """
        thaw(state.nodes, state.arrays, self._names, self._structures)
        self._runtime.fast_forward()


@functools.cache
def _software() -> str:
    """A digest of what results depend on beside the program."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in _PACKAGES:
        digest.update(importlib.metadata.version(name).encode())
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
