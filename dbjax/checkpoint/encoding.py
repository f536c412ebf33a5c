"""Values as JSON and a list of arrays, and back. Nothing is unpickled, no code is run.

Numbers, names, containers, and instances of dataclasses and named tuples whose modules are
imported already. An instance is made without its `__init__`, of its fields.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.known import known_class, name_of, tuple_class

Array = np.ndarray[Any, Any]
_CONTAINERS: dict[str, type[Any]] = {"tuple": tuple, "list": list, "set": set}


@final
class Arrays:
    """The arrays of what is encoded, each object once.

    Attributes:
      values: all of them, in order.
    """

    def __init__(self) -> None:
        self.values: list[Array] = []
        self._places: dict[int, tuple[int, Any]] = {}  # kept, so that no id comes again

    def place(self, value: Any) -> int:
        """The place of an array; it is appended if it is new."""
        if id(value) not in self._places:
            self._places[id(value)] = len(self.values), value
            self.values.append(np.asarray(value))
        return self._places[id(value)][0]


def encode(value: Any, arrays: Arrays) -> Any:
    """JSON for a value; its arrays are added to `arrays`.

    Raises:
      TypeError: something is of a kind that cannot be encoded; names it.
    """
    return _Encoder(arrays).of(value)


@final
class _Encoder:
    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, (np.ndarray, jax.Array, np.generic)):
            kind = "jax" if isinstance(value, jax.Array) else "numpy"
            if value.ndim == 0 and value.dtype.kind in "fiub":  # losses: too small for a file
                return ["scalar", kind, str(value.dtype), np.asarray(value).tobytes().hex()]
            return [kind, self._arrays.place(value)]
        return self._compound(value)

    def _compound(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, dict):
            name = "counter" if kind is collections.Counter else "dict"
            return [name, *([self.of(k), self.of(v)] for k, v in value.items())]
        if kind is collections.deque:
            return ["deque", value.maxlen, *map(self.of, value)]
        if kind.__name__ in _CONTAINERS and kind in _CONTAINERS.values():
            return [kind.__name__, *map(self.of, value)]
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return ["of", name_of(kind), *([n, self.of(getattr(value, n))] for n in names)]
        if isinstance(value, tuple):
            return ["named", name_of(kind), *map(self.of, value)]
        raise TypeError(f"a checkpoint cannot hold a {kind.__module__}.{kind.__qualname__}")


def decode(encoded: Any, arrays: list[Array]) -> Any:
    """The value that was encoded.

    Raises:
      ValueError: it is not what `encode` makes.
    """
    try:
        return _Decoder(arrays).of(encoded)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an encoded value: {error}") from error


@final
class _Decoder:
    def __init__(self, arrays: list[Array]) -> None:
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
            case "dict":
                return {self.of(k): self.of(v) for k, v in rest}
            case "counter":
                return collections.Counter({self.of(k): self.of(v) for k, v in rest})
            case "deque":
                return collections.deque(map(self.of, rest[1:]), rest[0])
            case "of":
                return self._instance(*rest)
            case "named":
                return tuple_class(rest[0])._make(map(self.of, rest[1:]))
        return _CONTAINERS[kind](map(self.of, rest))

    def _device_array(self, place: int) -> jax.Array:
        if place not in self._on_device:
            self._on_device[place] = jnp.asarray(self._arrays[place])
        return self._on_device[place]

    def _instance(self, name: str, *fields: list[Any]) -> Any:
        kind = known_class(name)
        if not dataclasses.is_dataclass(kind):
            raise ValueError(f"{name!r} is no dataclass")
        made: Any = object.__new__(kind)
        for field, value in fields:
            object.__setattr__(made, field, self.of(value))
        return made


def scalar(kind: str, dtype: str, digits: str) -> Any:
    """An array of no dimensions, of its bytes."""
    value = np.frombuffer(bytes.fromhex(digits), np.dtype(dtype)).reshape(())
    return jnp.asarray(value) if kind == "jax" else value
