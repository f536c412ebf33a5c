"""Encodes messages as bytes, with their arrays separate.

Arrays are left out of the pickle, where a number stands for each; they are sent as raw memory. No
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

ALIGNMENT = 64  # bytes; XLA needs this alignment to use memory in place
_SMALL = 256  # NumPy arrays of fewer bytes stay in the pickle

Place = tuple[bool, Any, tuple[int, ...], int]  # whether it is a jax array, dtype, shape, offset
Host = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """An encoded message.

    Attributes:
      body: the pickle of everything but the arrays.
      arrays: the arrays of jax and of NumPy, each once.
      layout: the type and the place of each array, in memory that holds one after the other.
      nbytes: the size of that memory.
    """

    body: bytes
    arrays: Sequence[Any]
    layout: tuple[Place, ...]
    nbytes: int

    def write(self, memory: Host) -> None:
        """Copies the arrays into memory by the layout; waits for those being computed."""
        for array, (_, dtype, shape, offset) in zip(self.arrays, self.layout, strict=True):
            np.copyto(_view(memory, dtype, shape, offset), np.asarray(array))


def pack(message: Any) -> Packed:
    """Encodes a message with Python's own pickle, or with cloudpickle where that fails."""
    stream = io.BytesIO()
    try:
        packer = _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL)
        packer.dump(message)
        return _packed(stream.getvalue(), packer.arrays)
    except (pickle.PicklingError, AttributeError, TypeError):
        return pack_code(message)


def pack_code(message: Any) -> Packed:
    """Encodes a message with cloudpickle, which can also send functions not found in a module."""
    stream = io.BytesIO()
    packer = _CodePacker(stream)
    packer.dump(message)
    return _packed(stream.getvalue(), packer.arrays)


def unpack(body: bytes | memoryview, layout: Sequence[Place], memory: Host | None) -> Any:
    """Decodes a message.

    Args:
      body: `Packed.body`.
      layout: `Packed.layout`.
      memory: the memory into which the arrays were written; None: there are no arrays. The arrays
        of the message use it in place, except where jax must copy.
    """
    hosts = [] if memory is None else [_view(memory, *place[1:]) for place in layout]
    return unpack_with(body, [place[0] for place in layout], hosts)


def unpack_with(body: bytes | memoryview, of_jax: Sequence[bool], hosts: Sequence[Host]) -> Any:
    """Decodes a message whose arrays are given.

    Args:
      body: `Packed.body`.
      of_jax: which of the arrays become jax arrays.
      hosts: the arrays.

    Raises:
      RuntimeError: a process does not know a class of the message's pytrees.
    """
    arrays: list[Any] = list(hosts)
    chosen = [i for i, is_jax in enumerate(of_jax) if is_jax]
    if chosen:
        made = as_jax([hosts[i] for i in chosen])
        for i, array in zip(chosen, made, strict=True):
            arrays[i] = array
    try:
        return _Unpacker(io.BytesIO(body), arrays).load()
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters was pickled by value
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
    """Returns the class of concrete jax arrays, since `isinstance` of `jax.Array` is slow."""
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
                return None  # random keys can pickle themselves
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
