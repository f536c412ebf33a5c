"""Flattens and rebuilds nodes of pytrees of any registered class.

jax splits a node into its children and auxiliary data, such as the keys of a `FrozenDict` or the
static fields of a dataclass. Auxiliary data that cannot be saved, such as a function, is taken from
the program that reads the checkpoint: its own pytrees have the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import jax
from jax.tree_util import PyTreeDef, default_registry

_LEAF = jax.tree.structure(0)


def node_of(value: Any) -> tuple[Any, list[Any]] | None:
    """Returns a node's auxiliary data and its children; None: jax treats the value as a leaf."""
    found: Any = default_registry.flatten_one_level(value)
    return None if found is None else (found[1], list(found[0]))


def make_node(kind: type[Any], aux: Any, children: Sequence[Any]) -> Any:
    """Rebuilds a node from what `node_of` returned.

    Args:
      kind: the class of the node.
      aux: its auxiliary data.
      children: its children.

    Raises:
      ValueError: the class is not registered with jax, or such a node has other children.
    """
    try:
        leaves = [_LEAF] * len(children)
        structure = PyTreeDef.from_node_data_and_children(default_registry, (kind, aux), leaves)
        return structure.unflatten(children)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{kind.__qualname__} is not a pytree node with {len(children)} children"
        ) from error


@final
class Structures:
    """Numbers the nodes of a program's own pytrees; equal programs give them equal numbers.

    Args:
      *trees: the pytrees, such as the parameters; only their structure is used.
    """

    def __init__(self, *trees: Any) -> None:
        self._aux: list[tuple[type[Any], Any]] = []
        for tree in trees:
            for data in _nodes(jax.tree.structure(tree)):
                if data not in self._aux:
                    self._aux.append(data)

    def number(self, kind: type[Any], aux: Any) -> int | None:
        """Returns the number of a node; None: the program has no such node.

        Args:
          kind: the class of the node.
          aux: its auxiliary data.
        """
        return self._aux.index((kind, aux)) if (kind, aux) in self._aux else None

    def aux(self, kind: type[Any], number: int) -> Any:
        """Returns the auxiliary data of a node.

        Args:
          kind: the class of the node.
          number: its number.

        Raises:
          ValueError: there is no node of this number, or it is of another class.
        """
        found, aux = self._aux[number] if number < len(self._aux) else (None, None)
        if found is not kind:
            raise ValueError(f"this program's parameters have no such {kind.__qualname__}")
        return aux


def _nodes(structure: Any) -> Iterator[tuple[type[Any], Any]]:
    data = structure.node_data()
    if data is not None:
        yield data
    for child in structure.children():
        yield from _nodes(child)
