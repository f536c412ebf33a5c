"""Arrays in messages: how they travel from one process to another.

Ray's own serialization would turn every jax array into a new NumPy array and back. Here, arrays
travel as memory that jax uses in place: through shared memory within a machine, and as NumPy arrays,
which Ray moves through its object store if they are large, between machines.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pickle
from collections.abc import Sequence
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

_ALIGNMENT = 64  # bytes; XLA needs this alignment to use memory in place
_SMALL = 256  # smaller NumPy arrays travel as Ray sends them
_SHARED = 16384  # messages whose arrays have fewer bytes go without shared memory


@dataclasses.dataclass(frozen=True)
class Route:
    """How messages travel to a process.

    Attributes:
      reader: the name of the process.
      arena: the shared memory for it; None: it is on another machine.
      dtype: the dtype in which float32 arrays travel.
      keep: whether the same arrays are sent to several processes.
    """

    reader: str
    arena: Arena | None = None
    dtype: str = "float32"
    keep: bool = False


def packed(message: Any, route: Route) -> Any:
    """Returns the message with its arrays in a form that Ray sends fast; waits for the arrays.

    Only arrays that are leaves of the message, as a pytree, take this way. Unpickling the message
    restores them.
    """
    try:
        leaves, treedef = jax.tree.flatten(message)
    except (TypeError, ValueError):  # such as for a dict whose keys cannot be sorted
        return message
    places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
    if not places:
        return message
    arrays = [leaves[i] for i in places]
    hosts = [_on_host(array, route.dtype) for array in arrays]
    offsets, nbytes = [], 0
    for host in hosts:
        offsets.append(nbytes)
        nbytes += -(-host.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory: Any = None
    if SHARES and route.arena is not None and nbytes >= _SHARED:

        def write(data: Host) -> None:
            for host, offset in zip(hosts, offsets, strict=True):
                np.copyto(_view(data, host.dtype, host.shape, offset), host)

        key = (*arrays, route.dtype) if route.keep else None
        memory = route.arena.lend(route.reader, nbytes, write, key)
    for i, array, host, offset in zip(places, arrays, hosts, offsets, strict=True):
        place = host if memory is None else (memory, host.dtype, host.shape, offset)
        leaves[i] = _Sent(place, array.dtype, isinstance(array, jax.Array))
    return treedef.unflatten(leaves)


class _Sent(NamedTuple):
    """An array on its way."""

    place: Any  # the array itself, or where it lies in shared memory
    dtype: Any
    is_jax: bool

    def __reduce__(self) -> Any:
        return _arrived, tuple(self)


def _arrived(place: Any, dtype: Any, is_jax: bool) -> Any:
    host = _view(*place) if isinstance(place, tuple) else place
    if host.dtype != dtype:
        host = host.astype(dtype)
    return as_jax(host) if is_jax else host


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


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)  # random keys travel as they are
    return type(leaf) is np.ndarray and leaf.nbytes >= _SMALL and not leaf.dtype.hasobject


def _on_host(array: Any, dtype: str) -> Host:
    host = np.asarray(array)
    return host.astype(dtype, copy=False) if host.dtype == np.float32 else host


def _view(memory: Host, dtype: Any, shape: tuple[int, ...], offset: int) -> Host:
    size = math.prod(shape) * dtype.itemsize
    found: Host = memory[offset : offset + size].view(dtype).reshape(shape)
    return found


@final
class _NodePickler(ray.cloudpickle.Pickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.arrays: dict[int, Any] = {}

    def persistent_id(self, thing: Any) -> tuple[int, bool] | None:
        """Leaves arrays out of the pickle; what stands for one tells whether it is jax's."""
        if not _is_array(thing):
            return None
        self.arrays.setdefault(id(thing), thing)
        return list(self.arrays).index(id(thing)), isinstance(thing, jax.Array)


def packed_node(node: Any) -> tuple[bytes, list[Any]]:
    """Encodes what runs on a node, apart from its arrays, which it returns too.

    So each array is put into Ray's object store once, however many nodes have it. Functions that
    are in no module travel by value.
    """
    stream = io.BytesIO()
    pickler = _NodePickler(stream)
    pickler.dump(node)
    return stream.getvalue(), list(pickler.arrays.values())


def unpacked_node(body: bytes, arrays: Sequence[Host]) -> Any:
    """Decodes the result of `packed_node`.

    Raises:
      RuntimeError: this process does not know a class of the node's pytrees.
    """
    restored = functools.cache(lambda i, is_jax: as_jax(arrays[i]) if is_jax else arrays[i])
    unpickler = pickle.Unpickler(io.BytesIO(body))
    unpickler.persistent_load = lambda place: restored(*place)  # type: ignore[method-assign]
    try:
        return unpickler.load()
    except jax.errors.JaxRuntimeError as error:  # a class of the parameters was pickled by value
        remedy = "define and register it in a module that every process can import"
        raise RuntimeError(f"{error}: {remedy}") from error
