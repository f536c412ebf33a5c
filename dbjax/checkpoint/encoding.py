"""Values as JSON and a list of arrays, and back. Nothing is unpickled, no code is run.

Numbers, names, containers, nodes of pytrees, and instances of dataclasses and named tuples whose
modules are imported already. An instance is made without its `__init__`, of its fields; a node of
a pytree as jax makes it.
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
    """No module that is imported has it."""


def class_name(kind: Any) -> str:
    """Of a class, as `class_named` takes it."""
    return f"{kind.__module__}:{kind.__qualname__}"


def lookup(module: str, path: str) -> Any:
    """What a module has under that path, or None."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def class_named(name: str) -> type[Any]:
    """The class of that name.

    Raises:
      Unknown: there is none.
    """
    module, _, path = name.partition(":")
    found = lookup(module, path)
    if not isinstance(found, type):
        raise Unknown(f"{name!r} is no class that is known here")
    return found


def named_tuple_class(name: str) -> type[Any]:
    """The named tuple of that name.

    Raises:
      ValueError: it is none.
    """
    found = class_named(name)
    if not issubclass(found, tuple) or getattr(found, "_make", None) is None:
        raise ValueError(f"{name!r} is no named tuple")
    return found


Array = np.ndarray[Any, Any]
_CONTAINERS: dict[str, type[Any]] = {"tuple": tuple, "list": list, "set": set}


@final
class ArrayTable:
    """The arrays of what is encoded, each object once.

    Attributes:
      values: all of them, in order.
      structures: of the program whose values are encoded.
    """

    def __init__(self, structures: Structures | None = None) -> None:
        self.values: list[Array] = []
        self.structures = structures or Structures()
        self._places: dict[int, tuple[int, Any]] = {}  # kept, so that no id comes again

    def place(self, value: Any) -> int:
        """The place of an array; it is appended if it is new."""
        if id(value) not in self._places:
            self._places[id(value)] = len(self.values), value
            self.values.append(np.asarray(value))
        return self._places[id(value)][0]


def encode(value: Any, arrays: ArrayTable) -> Any:
    """JSON for a value; its arrays are added to `arrays`.

    Raises:
      TypeError: something is of a kind that cannot be encoded; names it.
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
            if value.ndim == 0 and value.dtype.kind in "fiub":  # losses: too small for a file
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
        """Auxiliary data of a node, or the number under which the program knows them."""
        try:
            return self.of(aux)
        except TypeError:
            number = self._arrays.structures.number(kind, aux)
            if number is None:
                raise
            return ["own", number]


@dataclasses.dataclass(frozen=True)
class UnresolvedNode:
    """A node of a pytree whose auxiliary data only its program knows: see `resolve_nodes`."""

    name: str
    number: int
    children: tuple[Any, ...]


def resolve_nodes(value: Any, structures: Structures) -> Any:
    """A decoded value, with the nodes that only the program that reads can make.

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
    """The value that was encoded; what its program has to complete is left `UnresolvedNode`.

    Raises:
      ValueError: it is not what `encode` makes.
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
            raise ValueError(f"{name!r} is no dataclass")
        make_node: Any = object.__new__(kind)
        for field, value in fields:
            object.__setattr__(make_node, field, self.of(value))
        return make_node


def bytes_of(array: Array) -> memoryview:
    """The bytes of an array of any dtype; NumPy gives no buffer of some, such as bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def storable(array: Array) -> Array:
    """The array; viewed as bytes if it is of float8_e4m3, which Orbax cannot store."""
    return array.view(np.uint8) if array.dtype == jnp.float8_e4m3 else array


def is_key(value: Any) -> bool:
    """Whether an array holds random keys of jax, which NumPy does not know."""
    return bool(jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def encoded_key(value: Any, arrays: ArrayTable) -> list[Any]:
    """JSON for an array of random keys."""
    return ["key", str(jax.random.key_impl(value)), arrays.place(jax.random.key_data(value))]


def decoded_key(implementation: str, place: int, arrays: Sequence[Array]) -> jax.Array:
    """The array of random keys that was encoded."""
    made_again: jax.Array = jax.random.wrap_key_data(
        jnp.asarray(arrays[place]), impl=implementation
    )
    return made_again


def encoded_scalar(value: Any) -> list[Any]:
    """JSON for an array of no dimensions, in its bytes."""
    kind = "jax" if isinstance(value, jax.Array) else "numpy"
    kind = "weak" if kind == "jax" and value.weak_type else kind
    return ["scalar", kind, str(value.dtype), np.asarray(value).tobytes().hex()]


def scalar(kind: str, dtype: str, digits: str) -> Any:
    """The array of no dimensions that was encoded."""
    value = np.frombuffer(bytes.fromhex(digits), np.dtype(dtype)).reshape(())
    if kind == "weak":
        return jnp.asarray(value.item())
    return jnp.asarray(value) if kind == "jax" else value
