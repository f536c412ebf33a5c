"""Encodes values as JSON and a list of arrays, and decodes them without running any code.

Nothing is unpickled. A value may consist of numbers, strings, containers, nodes of pytrees, and
instances of dataclasses and named tuples whose modules are imported already. An instance of a
dataclass is made from its fields without calling `__init__`; a node of a pytree is made by jax.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.trees import Structures, make_node, node_of


class Unknown(ValueError):
    """A file names a class that no imported module has, or a format that is not known."""


def class_name(kind: Any) -> str:
    """Returns the name of a class in the form that `class_named` takes."""
    return f"{kind.__module__}:{kind.__qualname__}"


def lookup(module: str, path: str) -> Any:
    """Looks up an object in a module that is already imported.

    Args:
      module: the name of the module.
      path: the dotted path of the object in the module.

    Returns:
      The object; None: the module is not imported or does not have it.
    """
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def class_named(name: str) -> type[Any]:
    """Returns the class of a name that `class_name` made.

    Raises:
      Unknown: no imported module has such a class.
    """
    module, _, path = name.partition(":")
    found = lookup(module, path)
    if not isinstance(found, type):
        raise Unknown(f"{name!r} is not a class that is known here")
    return found


def named_tuple_class(name: str) -> type[Any]:
    """Returns the named tuple class of a name that `class_name` made.

    Raises:
      ValueError: it is not a named tuple.
    """
    found = class_named(name)
    if not issubclass(found, tuple) or getattr(found, "_make", None) is None:
        raise ValueError(f"{name!r} is not a named tuple")
    return found


Array = np.ndarray[Any, Any]
_CONTAINERS: dict[str, type[Any]] = {"tuple": tuple, "list": list, "set": set}


@final
class ArrayTable:
    """The arrays of an encoded value; an array that occurs several times is stored once.

    Args:
      structures: the nodes of the pytrees of the program whose values are encoded.

    Attributes:
      values: all arrays, in order.
      structures: the argument.
    """

    def __init__(self, structures: Structures | None = None) -> None:
        self.values: list[Array] = []
        self.structures = structures or Structures()
        # The arrays are kept alive, so that no id is used again.
        self._places: dict[int, tuple[int, Any]] = {}

    def place(self, value: Any) -> int:
        """Returns the index of an array, which is appended if it is new."""
        if id(value) not in self._places:
            self._places[id(value)] = len(self.values), value
            self.values.append(np.asarray(value))
        return self._places[id(value)][0]


def encode(value: Any, arrays: ArrayTable) -> Any:
    """Encodes a value as JSON.

    Args:
      value: the value.
      arrays: the table that the arrays of the value are added to.

    Raises:
      TypeError: a part of the value has a type that cannot be encoded; the message names it.
    """
    return _Encoder(arrays).of(value)


@final
class _Encoder:
    def __init__(self, arrays: ArrayTable) -> None:
        self._arrays = arrays

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, (np.ndarray, jax.Array, np.generic)):
            if is_key(value):
                return encoded_key(value, self._arrays)
            if value.ndim == 0 and value.dtype.kind in "fiub":  # such as a loss: too small to file
                return encoded_scalar(value)
            kind = "jax" if isinstance(value, jax.Array) else "numpy"
            return [kind, self._arrays.place(value)]
        return self._compound(value)

    def _compound(self, value: Any) -> Any:
        kind = type(value)
        if kind in (dict, collections.Counter):
            name = "counter" if kind is collections.Counter else "dict"
            return [name, *([self.of(k), self.of(v)] for k, v in value.items())]
        if kind is collections.deque:
            return ["deque", value.maxlen, *map(self.of, value)]
        if kind.__name__ in _CONTAINERS and kind in _CONTAINERS.values():
            return [kind.__name__, *map(self.of, value)]
        if isinstance(value, tuple) and hasattr(kind, "_make"):
            return ["named", class_name(kind), *map(self.of, value)]
        node = node_of(value)
        if node is not None:
            aux, children = node
            return ["tree", class_name(kind), self._aux(kind, aux), *map(self.of, children)]
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return ["of", class_name(kind), *([n, self.of(getattr(value, n))] for n in names)]
        raise TypeError(f"a checkpoint cannot hold a {kind.__module__}.{kind.__qualname__}")

    def _aux(self, kind: type[Any], aux: Any) -> Any:
        """Encodes a node's auxiliary data, or else its number in the program's structures."""
        try:
            return self.of(aux)
        except TypeError:
            number = self._arrays.structures.number(kind, aux)
            if number is None:
                raise
            return ["own", number]


@dataclasses.dataclass(frozen=True)
class UnresolvedNode:
    """A node of a pytree whose auxiliary data only the program has: see `resolve_nodes`.

    Attributes:
      name: the name of the node's class.
      number: its number in the program's structures.
      children: its decoded children.
    """

    name: str
    number: int
    children: tuple[Any, ...]


def resolve_nodes(value: Any, structures: Structures) -> Any:
    """Replaces every `UnresolvedNode` in a decoded value by the program's node.

    Args:
      value: the decoded value.
      structures: the nodes of the pytrees of the program that reads.

    Raises:
      ValueError: the program has no such node.
    """

    def of(part: Any) -> Any:
        return resolve_nodes(part, structures)

    if isinstance(value, UnresolvedNode):
        kind = class_named(value.name)
        return make_node(kind, structures.aux(kind, value.number), list(map(of, value.children)))
    if type(value) is dict:
        return {key: of(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(of, value))
    if (node := node_of(value)) is not None:
        return make_node(type(value), node[0], list(map(of, node[1])))
    if dataclasses.is_dataclass(value):
        again = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(again, field.name, of(getattr(value, field.name)))
        return again
    return value


def decode(encoded: Any, arrays: Sequence[Array]) -> Any:
    """Decodes a value.

    Args:
      encoded: the JSON that `encode` returned.
      arrays: the arrays of the table that `encode` filled.

    Returns:
      The value. Nodes that only the program can make are left as `UnresolvedNode`.

    Raises:
      ValueError: `encoded` is not what `encode` returns.
    """
    try:
        return _Decoder(arrays).of(encoded)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an encoded value: {error}") from error


@final
class _Decoder:
    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._on_device: dict[int, jax.Array] = {}

    def of(self, encoded: Any) -> Any:
        if not isinstance(encoded, list):
            return encoded
        kind, *rest = encoded
        match kind:
            case "float":
                return float(rest[0])
            case "scalar":
                return scalar(*rest)
            case "numpy":
                return self._arrays[rest[0]]
            case "jax":
                return self._device_array(rest[0])
            case "key":
                return decoded_key(rest[0], rest[1], self._arrays)
            case "tree":
                return self._node(*rest)
            case "dict":
                return {self.of(k): self.of(v) for k, v in rest}
            case "counter":
                return collections.Counter({self.of(k): self.of(v) for k, v in rest})
            case "deque":
                return collections.deque(map(self.of, rest[1:]), rest[0])
            case "of":
                return self._instance(*rest)
            case "named":
                return named_tuple_class(rest[0])._make(map(self.of, rest[1:]))
        return _CONTAINERS[kind](map(self.of, rest))

    def _device_array(self, place: int) -> jax.Array:
        if place not in self._on_device:
            self._on_device[place] = jnp.asarray(self._arrays[place])
        return self._on_device[place]

    def _node(self, name: str, aux: Any, *children: Any) -> Any:
        parts = tuple(map(self.of, children))
        if isinstance(aux, list) and aux[0] == "own":
            return UnresolvedNode(name, aux[1], parts)
        return make_node(class_named(name), self.of(aux), parts)

    def _instance(self, name: str, *fields: list[Any]) -> Any:
        kind = class_named(name)
        if not dataclasses.is_dataclass(kind):
            raise ValueError(f"{name!r} is not a dataclass")
        instance: Any = object.__new__(kind)
        for field, value in fields:
            object.__setattr__(instance, field, self.of(value))
        return instance


def bytes_of(array: Array) -> memoryview:
    """Returns the bytes of an array; some dtypes, such as bfloat16, have no buffer in NumPy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def storable(array: Array) -> Array:
    """Returns the array, viewed as bytes if its dtype is float8_e4m3, which Orbax cannot store."""
    return array.view(np.uint8) if array.dtype == jnp.float8_e4m3 else array


def is_key(value: Any) -> bool:
    """Returns whether an array holds random keys of jax, which NumPy does not support."""
    return bool(jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def encoded_key(value: Any, arrays: ArrayTable) -> list[Any]:
    """Encodes an array of random keys as JSON; its data is added to `arrays`."""
    return ["key", str(jax.random.key_impl(value)), arrays.place(jax.random.key_data(value))]


def decoded_key(implementation: str, place: int, arrays: Sequence[Array]) -> jax.Array:
    """Decodes an array of random keys.

    Args:
      implementation: the name of the keys' implementation.
      place: the index of the keys' data in `arrays`.
      arrays: the arrays of the encoded value.
    """
    keys: jax.Array = jax.random.wrap_key_data(jnp.asarray(arrays[place]), impl=implementation)
    return keys


def encoded_scalar(value: Any) -> list[Any]:
    """Encodes a zero-dimensional array as JSON, with its bytes in hexadecimal."""
    kind = "jax" if isinstance(value, jax.Array) else "numpy"
    kind = "weak" if kind == "jax" and value.weak_type else kind
    return ["scalar", kind, str(value.dtype), np.asarray(value).tobytes().hex()]


def scalar(kind: str, dtype: str, digits: str) -> Any:
    """Decodes a zero-dimensional array.

    Args:
      kind: "numpy", "jax", or "weak" for a jax array of weak type.
      dtype: the name of the dtype.
      digits: the bytes in hexadecimal.
    """
    value = np.frombuffer(bytes.fromhex(digits), np.dtype(dtype)).reshape(())
    if kind == "weak":
        return jnp.asarray(value.item())
    return jnp.asarray(value) if kind == "jax" else value
