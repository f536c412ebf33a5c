"""Nodes of pytrees whatever their class: what jax knows of a node, and a node made of it again.

jax splits a node into its children and auxiliary data, such as the keys of a `FrozenDict` or the
static fields of a dataclass. What of those data cannot be written down, such as a function, is
taken from the program that reads: its own pytrees have the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import jax
from jax.tree_util import PyTreeDef, default_registry

_LEAF = jax.tree.structure(0)


def node_of(value: Any) -> tuple[Any, list[Any]] | None:
    """A node's auxiliary data and its children; None: jax takes the value for a leaf."""
    found: Any = default_registry.flatten_one_level(value)
    return None if found is None else (found[1], list(found[0]))


def make_node(kind: type[Any], aux: Any, children: Sequence[Any]) -> Any:
    """The node of that class, from what `node_of` gave.

    Raises:
      ValueError: jax knows no such nodes, or they have other children.
    """
    try:
        leaves = [_LEAF] * len(children)
        structure = PyTreeDef.from_node_data_and_children(default_registry, (kind, aux), leaves)
        return structure.unflatten(children)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{kind.__qualname__} is no pytree of {len(children)} children") from error


@final
class Structures:
    """The nodes of a program's own pytrees, by number. The same program numbers them alike.

    Args:
      trees: such as the parameters; only their structure counts.
    """

    def __init__(self, *trees: Any) -> None:
        self._aux: list[tuple[type[Any], Any]] = []
        for tree in trees:
            for data in _nodes(jax.tree.structure(tree)):
                if data not in self._aux:
                    self._aux.append(data)

    def number(self, kind: type[Any], aux: Any) -> int | None:
        """Of the node with these auxiliary data; None: the program has no such node."""
        return self._aux.index((kind, aux)) if (kind, aux) in self._aux else None

    def aux(self, kind: type[Any], number: int) -> Any:
        """The auxiliary data of the node of that number.

        Raises:
          ValueError: it is of another class, or there are fewer.
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
