"""Messages between processes: what Ray carries, with arrays as memory that jax uses in place.

Ray would turn every jax array into a new NumPy array and back. Here, arrays travel through shared
memory within a machine; between machines, Ray moves them through its object store if they are
large. Everything else is pickled as Ray pickles it.
"""

from __future__ import annotations

import functools
import io
import pickle
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import ray.cloudpickle

from dbjax.runtime.ray.segments import SHARES, Arena, Host

try:  # `jax.device_put` ends in this call, which takes 2.5 us an array; finding it takes it 14 us
    from jax._src.core import ShapedArray
    from jax._src.lib import xla_client  # type: ignore[attr-defined]

    batched_device_put = xla_client.batched_device_put
except (ImportError, AttributeError):
    batched_device_put = None

_SMALL = 256  # arrays of fewer bytes are pickled with the rest
_SHARED = 16384  # messages whose arrays have fewer bytes go without shared memory


class Route(NamedTuple):
    """How messages travel to a process.

    Attributes:
      reader: the name of the process.
      arena: the shared memory for it; None: it is on another machine.
      dtype: the dtype in which float32 arrays of jax travel.
      keep: whether the same arrays are sent to several processes.
    """

    reader: str = ""
    arena: Arena | None = None
    dtype: str = "float32"
    keep: bool = False


class Message(NamedTuple):
    """A message on its way: a pickle, and the arrays that it leaves out.

    Attributes:
      body: the pickle.
      memory: the shared memory in which the arrays lie; None: there is none.
      arrays: the offset and the size of every array in it, or the bytes of the arrays.
    """

    body: bytes
    memory: Any
    arrays: list[Any]


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
        if type(thing) is not _jax_array():
            return super().reducer_override(thing)
        host = np.asarray(thing)
        sent = host.astype(self._dtype, copy=False) if host.dtype == np.float32 else host
        data = np.ascontiguousarray(sent).reshape(-1).view(np.uint8)
        return _arrived, (data, sent.dtype, host.dtype, host.shape)


def _arrived(data: Host, sent: Any, dtype: Any, shape: tuple[int, ...]) -> jax.Array:
    return as_jax(data.view(sent).reshape(shape).astype(dtype, copy=False))


@functools.cache
def _jax_array() -> type:
    return type(jnp.zeros(()))


def encode(value: Any, route: Route = Route()) -> Message:
    """Makes a message; waits for the arrays that are still being computed."""
    stream, arrays = io.BytesIO(), list[Host]()
    _Pickler(stream, route.dtype, arrays).dump(value)
    body, nbytes = stream.getvalue(), sum(array.nbytes for array in arrays)
    if nbytes < _SHARED:
        return Message(body, None, [array.tobytes() for array in arrays])
    if route.arena is None or not SHARES:
        return Message(body, None, arrays)
    keep = route.keep and not any(array.flags.writeable for array in arrays)
    memory, offsets = route.arena.lend(route.reader, arrays, keep)
    places = [(o, array.nbytes) for o, array in zip(offsets, arrays, strict=True)]
    return Message(body, memory, places)


def decode(message: Message) -> Any:
    """Returns the value from which a message was made.

    Raises:
      RuntimeError: this process does not know a class of the pytrees in it.
    """
    body, memory, arrays = message
    if memory is not None:
        arrays = [memory[offset : offset + nbytes] for offset, nbytes in arrays]
    try:
        return pickle.loads(body, buffers=arrays)
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters was pickled by value
        remedy = "define and register it in a module that every process can import"
        raise RuntimeError(f"{error}: {remedy}") from error


def as_jax(host: Host) -> jax.Array:
    """Puts an array on the default device. Its memory must not change while jax uses it."""
    if batched_device_put is None:
        return jax.device_put(host, may_alias=True)
    device, sharding = _default()
    made: jax.Array = batched_device_put(
        _abstract(host.shape, host.dtype), sharding, [host], [device], False
    )
    return made


@functools.lru_cache(maxsize=4096)
def _abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    return ShapedArray(shape, dtype)


@functools.cache
def _default() -> tuple[jax.Device, jax.sharding.SingleDeviceSharding]:
    device = jax.local_devices()[0]
    return device, jax.sharding.SingleDeviceSharding(device)
