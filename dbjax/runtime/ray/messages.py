"""Messages between processes: pickles whose arrays travel apart, as memory that jax uses in place.

Ray would turn every jax array into a new NumPy array and back. Here, arrays travel through shared
memory within a machine; between machines, Ray moves them, through its object store if they are
large.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import ray.cloudpickle

from dbjax.runtime.ray.segments import SHARES, Arena, Host

_SMALL = 256  # arrays of fewer bytes are pickled with the rest
_SHARED = 16384  # messages whose arrays have fewer bytes go without shared memory


class Route(NamedTuple):
    """How messages travel to a process."""

    reader: str = ""  # the name of the process
    arena: Arena | None = None  # the memory shared with it; None: it is on another machine
    dtype: str = "float32"  # the dtype in which float32 arrays of jax travel


_ROUTE = Route()


class Message(NamedTuple):
    """A message on its way."""

    body: bytes  # the pickle
    memory: Any  # the shared memory in which the arrays lie; None: there is none
    arrays: list[Any]  # the offset and the size of every array in it, or the bytes of the arrays


@final
class _Pickler(ray.cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, dtype: str, arrays: list[Host]) -> None:
        def leave_out(buffer: pickle.PickleBuffer) -> bool:
            """Returns whether an array is pickled with the rest."""
            data = buffer.raw()
            if data.nbytes >= _SMALL:
                arrays.append(np.frombuffer(data, np.uint8))
            return data.nbytes < _SMALL

        super().__init__(file, protocol=5, buffer_callback=leave_out)
        self._dtype = dtype

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, jax.Array) or jnp.issubdtype(thing.dtype, jax.dtypes.extended):
            return super().reducer_override(thing)
        host = np.asarray(thing)
        sent = host.astype(self._dtype, copy=False) if host.dtype == np.float32 else host
        data = np.ascontiguousarray(sent).reshape(-1).view(np.uint8)
        return _arrived, (data, sent.dtype, host.dtype, host.shape)


def _arrived(data: Host, sent: Any, dtype: Any, shape: tuple[int, ...]) -> jax.Array:
    host = data.view(sent).reshape(shape).astype(dtype, copy=False)
    made: jax.Array = jax.device_put(host, may_alias=True)
    return made


def encode(value: Any, route: Route = _ROUTE) -> Message:
    """Makes a message; waits for the arrays that are still being computed."""
    stream, arrays = io.BytesIO(), list[Host]()
    _Pickler(stream, route.dtype, arrays).dump(value)
    if sum(array.nbytes for array in arrays) < _SHARED:
        return Message(stream.getvalue(), None, [array.tobytes() for array in arrays])
    if route.arena is None or not SHARES:
        return Message(stream.getvalue(), None, arrays)
    return Message(stream.getvalue(), *route.arena.lend(route.reader, arrays))


def encode_all(values: Mapping[str, Any]) -> dict[str, Message]:
    """Makes messages of values, in which arrays that several values contain are the same object."""
    arrays: dict[tuple[int, int], Any] = {}

    def once(array: Any) -> Any:
        is_small = isinstance(array, bytes)
        return array if is_small else arrays.setdefault((array.ctypes.data, array.nbytes), array)

    messages = {name: encode(value) for name, value in values.items()}
    return {name: m._replace(arrays=[*map(once, m.arrays)]) for name, m in messages.items()}


def decode(message: Message) -> Any:
    """Returns the value from which a message was made.

    Raises:
      RuntimeError: this process does not know a class of the pytrees in it.
    """
    body, memory, arrays = message
    if memory is not None:
        arrays = [memory[begin:end] for begin, end in arrays]
    try:
        return pickle.loads(body, buffers=arrays)
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters was pickled by value
        remedy = "define and register it in a module that every process can import"
        raise RuntimeError(f"{error}: {remedy}") from error
