"""Restores the state of a virtual run from a checkpoint into a newly built program.

No code comes from the file, and nothing is imported for it: all functions and classes are those of
dbjax and of the algorithm's package, in modules that are already imported.
"""

from __future__ import annotations

import collections
import functools
import itertools
import threading
import types
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.encoding import (
    Array,
    decode,
    decoded_key,
    named_tuple_class,
    resolve_nodes,
    scalar,
)
from dbjax.checkpoint.exact import code, ours
from dbjax.checkpoint.exact.names import Names
from dbjax.checkpoint.trees import Structures

_EMPTY = {"dict": dict, "counter": collections.Counter, "list": list, "set": set}


def thaw(
    nodes: Sequence[Any],
    arrays: Sequence[Array],
    names: Names,
    structures: Structures | None = None,
) -> Any:
    """Restores the state of a run into the objects of a new program.

    Args:
      nodes: the table of objects that `Freezer.table` made.
      arrays: the arrays that the table refers to.
      names: the names of the new program's objects.
      structures: the nodes of the new program's pytrees.

    Returns:
      The root of the state, node 0.

    Raises:
      ValueError: it is not such a table, or it belongs to another program.
    """
    try:
        return _Thawing(nodes, arrays, names, structures or Structures()).root()
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not the state of a run: {error}") from error


@final
class _Thawing:
    """Makes every object empty first and then fills them, because the graph may have cycles."""

    def __init__(
        self, nodes: Sequence[Any], arrays: Sequence[Array], names: Names, structures: Structures
    ) -> None:
        self._nodes, self._arrays, self._names = nodes, arrays, names
        self._structures = structures
        self._on_device: dict[int, jax.Array] = {}
        self._made = [self._empty(kind, rest) for kind, *rest in nodes]

    def root(self) -> Any:
        hashed = ("dict", "counter", "set")  # filled last, when their keys can be hashed
        for filled_last in (False, True):
            for made, (kind, *rest) in zip(self._made, self._nodes, strict=True):
                if (kind in hashed) == filled_last:
                    self._fill(made, kind, rest)
        return self._made[0]

    def _empty(self, kind: str, rest: list[Any]) -> Any:
        match kind:
            case "built":
                return self._names.get(rest[0])
            case "of":
                return object.__new__(ours.instance_class(rest[0]))
            case "deque":
                return collections.deque(maxlen=rest[0])
            case "function":
                return code.of_module(*rest)
            case "closure":
                return code.made_of(tuple(rest[0]))
            case "partial":
                return functools.partial(_nothing)
            case "count":
                return itertools.count(int(rest[0]))
            case "generator":
                return _generator(rest[0])
            case "lock":
                return threading.RLock() if rest else threading.Lock()
            case "error":
                return ours.error_class(rest[0])()
            case "tree":
                return resolve_nodes(decode(rest[0], self._arrays), self._structures)
        return _EMPTY[kind]()

    def _fill(self, made: Any, kind: str, rest: list[Any]) -> None:
        match kind:
            case "built" | "of":
                for name, value in rest[1:]:
                    object.__setattr__(made, name, self._of(value))
            case "list":
                made.extend(map(self._of, rest))
            case "deque":
                made.extend(map(self._of, rest[1:]))
            case "set":
                made.update(map(self._of, rest))
            case "dict" | "counter":
                dict.update(made, ((self._of(key), self._of(value)) for key, value in rest))
            case "closure":
                self._fill_closure(made, *rest[1:])
            case "partial":
                function, args, keywords = map(self._of, rest)
                made.__setstate__((function, args, keywords, None))
            case "error":
                made.args, made.__cause__ = self._of(rest[1]), self._of(rest[2])

    def _fill_closure(self, made: types.FunctionType, cells: list[Any], *rest: Any) -> None:
        for cell, value in zip(made.__closure__ or (), cells, strict=True):
            cell.cell_contents = self._of(value)
        made.__defaults__, made.__kwdefaults__ = map(self._of, rest)

    def _of(self, encoded: Any) -> Any:
        if not isinstance(encoded, list):
            return encoded
        kind, *rest = encoded
        match kind:
            case "at":
                return self._made[rest[0]]
            case "tuple":
                return tuple(map(self._of, rest))
            case "named":
                return named_tuple_class(rest[0])._make(map(self._of, rest[1:]))
            case "float":
                return float(rest[0])
            case "method":
                return _method(self._of(rest[0]), rest[1])
            case "class":
                return ours.named(rest[0])
            case "numpy":
                return self._arrays[rest[0]]
            case "jax":
                return self._device_array(rest[0])
            case "key":
                return decoded_key(rest[0], rest[1], self._arrays)
            case "scalar":
                return scalar(*rest)
            case "number":
                return scalar("numpy", *rest)[()]
        raise ValueError(f"{kind!r} is not a kind of value")

    def _device_array(self, place: int) -> jax.Array:
        if place not in self._on_device:
            self._on_device[place] = jnp.asarray(self._arrays[place])
        return self._on_device[place]


def _method(owner: Any, name: str) -> Any:
    """Returns a method of an instance of dbjax or of an algorithm's package."""
    ours.require_ours(type(owner).__module__)
    function = getattr(type(owner), name)
    if not isinstance(function, types.FunctionType):
        raise ValueError(f"{type(owner).__name__} has no method {name!r}")
    return types.MethodType(function, owner)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"{state['bit_generator']!r} is not a generator that dbjax uses")
    bits = np.random.PCG64()
    setattr(bits, "state", state)  # noqa: B010 - a plain dict, as `state` returned it
    return np.random.Generator(bits)


def _nothing() -> None:
    return None
