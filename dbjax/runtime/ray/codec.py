"""Messages as bytes, with their arrays beside them.

Arrays are left out of the pickle: each stands there as a number, and travels as raw memory. No
jax array is ever pickled.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
from collections.abc import Sequence
from typing import Any, final

import jax
import numpy as np
import ray.cloudpickle

from dbjax.runtime.ray.aliases import as_jax

ALIGNMENT = 64  # what XLA asks for, to use memory as it lies
_SMALL = 256  # NumPy arrays below this stay in the pickle

Place = tuple[bool, Any, tuple[int, ...], int]  # of jax, dtype, shape, offset
Host = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A message.

    Attributes:
      body: everything but its arrays.
      arrays: those of jax and of NumPy, each once.
      layout: where each of them lies, one behind the other.
      nbytes: of all of them so laid out.
    """

    body: bytes
    arrays: Sequence[Any]
    layout: tuple[Place, ...]
    nbytes: int

    def write(self, memory: Host) -> None:
        """Copies the arrays to where they belong; waits for those that are being computed."""
        for array, (_, dtype, shape, offset) in zip(self.arrays, self.layout, strict=True):
            np.copyto(_view(memory, dtype, shape, offset), np.asarray(array))


def pack(message: Any) -> Packed:
    """By Python's own pickle, or where that refuses, by cloudpickle."""
    stream = io.BytesIO()
    try:
        packer = _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL)
        packer.dump(message)
        return _packed(stream.getvalue(), packer.arrays)
    except (pickle.PicklingError, AttributeError, TypeError):
        return pack_code(message)


def pack_code(message: Any) -> Packed:
    """By cloudpickle: functions that no module knows travel too."""
    stream = io.BytesIO()
    packer = _CodePacker(stream)
    packer.dump(message)
    return _packed(stream.getvalue(), packer.arrays)


def unpack(body: bytes | memoryview, layout: Sequence[Place], memory: Host | None) -> Any:
    """The message; its arrays are the memory, where jax can use it as it is, or else copies."""
    hosts = [] if memory is None else [_view(memory, *place[1:]) for place in layout]
    return unpack_with(body, [place[0] for place in layout], hosts)


def unpack_with(body: bytes | memoryview, of_jax: Sequence[bool], hosts: Sequence[Host]) -> Any:
    """The message, with these arrays in it; `of_jax` says which become jax's."""
    arrays: list[Any] = list(hosts)
    chosen = [i for i, is_jax in enumerate(of_jax) if is_jax]
    if chosen:
        made = as_jax([hosts[i] for i in chosen])
        for i, array in zip(chosen, made, strict=True):
            arrays[i] = array
    try:
        return _Unpacker(io.BytesIO(body), arrays).load()
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters travelled by value
        remedy = "define and register it in a module that every process can import"
        raise RuntimeError(f"{error}: {remedy}") from error


def _packed(body: bytes, arrays: Sequence[Any]) -> Packed:
    layout, offset = [], 0
    for array in arrays:
        layout.append((type(array) is _jax_type(), array.dtype, array.shape, offset))
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return Packed(body, arrays, tuple(layout), offset)


def _view(memory: Host, dtype: Any, shape: tuple[int, ...], offset: int) -> Host:
    size = dtype.itemsize
    for length in shape:
        size *= length
    found: Host = memory[offset : offset + size].view(dtype).reshape(shape)
    return found


@functools.cache
def _jax_type() -> type:
    """The class of concrete arrays (`jax.Array` is abstract, and slow to ask for)."""
    return type(jax.device_put(np.float32(0)))


@final
class _Arrays:
    """Numbers the arrays of a message."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._jax_type = _jax_type()

    def number(self, thing: Any) -> int | None:
        kind = type(thing)
        if kind is self._jax_type:
            if type(thing.dtype).__module__.startswith("jax"):
                return None  # keys of random numbers know how to pickle themselves
        elif kind is not np.ndarray or thing.nbytes < _SMALL or thing.dtype.hasobject:
            return None
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self.found)
            self.found.append(thing)
        return self._numbers[id(thing)]


@final
class _Packer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self._arrays = _Arrays()
        self.arrays = self._arrays.found
        self.persistent_id = self._arrays.number  # type: ignore[method-assign]


@final
class _CodePacker(ray.cloudpickle.Pickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._arrays = _Arrays()
        self.arrays = self._arrays.found
        self.persistent_id = self._arrays.number  # type: ignore[method-assign]


@final
class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, arrays: Sequence[Any]) -> None:
        super().__init__(stream)
        self.persistent_load = arrays.__getitem__  # type: ignore[method-assign]
