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
    kinds: list[tuple[Any, ...]]  # of the first arrays, jax's: dtype on the way, dtype, shape


@final
class _Pickler(ray.cloudpickle.Pickler):
    """Leaves out the arrays of jax and the memory of large NumPy arrays."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5, buffer_callback=self._leave_out)
        self.buffers = list[Host]()
        self.arrays = dict[int, tuple[int, jax.Array]]()  # an array's id: its number, itself

    def _leave_out(self, buffer: pickle.PickleBuffer) -> bool:
        """Returns whether memory is pickled with the rest."""
        data = buffer.raw()
        if data.nbytes >= _SMALL:
            self.buffers.append(np.frombuffer(data, np.uint8))
        return data.nbytes < _SMALL

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, BaseException) and thing.__cause__ is not None:  # pickle drops causes
            return _from, (ray.cloudpickle.dumps(thing), thing.__cause__)
        return super().reducer_override(thing)

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, jax.Array) or jnp.issubdtype(thing.dtype, jax.dtypes.extended):
            return None
        return self.arrays.setdefault(id(thing), (len(self.arrays), thing))[0]


def _from(pickled: bytes, cause: BaseException) -> BaseException:
    error: BaseException = pickle.loads(pickled)
    error.__cause__ = cause
    return error


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes, buffers: list[Any], arrays: list[jax.Array]) -> None:
        super().__init__(io.BytesIO(body), buffers=buffers)
        self._arrays = arrays

    def persistent_load(self, number: int) -> jax.Array:
        return self._arrays[number]


def encode(value: Any, route: Route = _ROUTE) -> Message:
    """Makes a message; waits for the arrays that are still being computed."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    arrays, kinds = list[Host](), list[tuple[Any, ...]]()
    for _, array in pickler.arrays.values():
        host = np.asarray(array)
        sent = host.astype(route.dtype, copy=False) if host.dtype == np.float32 else host
        arrays.append(np.ascontiguousarray(sent).reshape(-1).view(np.uint8))
        kinds.append((sent.dtype, host.dtype, host.shape))
    arrays += pickler.buffers
    body = stream.getvalue()
    if sum(array.nbytes for array in arrays) < _SHARED:
        return Message(body, None, [array.tobytes() for array in arrays], kinds)
    if route.arena is None or not SHARES:
        return Message(body, None, arrays, kinds)
    return Message(body, *route.arena.lend(route.reader, arrays), kinds)


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
    body, memory, arrays, kinds = message
    if memory is not None:
        arrays = [memory[begin:end] for begin, end in arrays]
    hosts = [
        np.frombuffer(array, sent).reshape(shape).astype(dtype, copy=False)
        for array, (sent, dtype, shape) in zip(arrays, kinds, strict=False)
    ]
    try:
        made = jax.device_put(hosts, may_alias=True) if hosts else []  # faster than one by one
        return _Unpickler(body, arrays[len(kinds) :], made).load()
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters was pickled by value
        remedy = "define and register it in a module that every process can import"
        raise RuntimeError(f"{error}: {remedy}") from error


def sendable(error: BaseException) -> BaseException:
    """Returns an error that can be sent, with its causes.

    A RuntimeError with the same text takes the place of what cannot be pickled or unpickled.
    """
    try:
        pickle.loads(ray.cloudpickle.dumps(error))
        made = error
    except Exception:
        made = RuntimeError(f"{type(error).__name__}: {error}")
    if error.__cause__ is not None:
        made.__cause__ = sendable(error.__cause__)
    return made
