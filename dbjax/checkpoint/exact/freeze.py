"""Saves the state of a virtual run between two events as JSON and arrays.

The state is a graph of objects, which may share objects and contain cycles. Each object is a node
of a table and refers to other objects by their index in it; tuples, numbers and strings are stored
inline. An object that existed before the run began is stored by its name (`Names`), together with
its current attributes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import threading
import types
from collections.abc import Coroutine, Iterable
from typing import Any, final

import jax
import numpy as np

from dbjax.checkpoint.encoding import (
    ArrayTable,
    class_name,
    encode,
    encoded_key,
    encoded_scalar,
    is_key,
)
from dbjax.checkpoint.exact import code
from dbjax.checkpoint.exact.borders import ARRAYS, attributes, has_state
from dbjax.checkpoint.exact.names import Names
from dbjax.checkpoint.exact.ours import is_ours, is_plain
from dbjax.checkpoint.trees import node_of
from dbjax.runtime.futures import Future
from dbjax.runtime.virtual.journal import SETTLED, JournaledCoroutine, Noted

_LOCKS = (type(threading.Lock()), type(threading.RLock()))


@final
class Freezer:
    """Makes the table of objects.

    Args:
      names: the names of the objects that existed before the run began.
      arrays: the table that the arrays of the state are added to.
      blank: futures to save as unsettled, because the journals of coroutines settle them again.
    """

    def __init__(self, names: Names, arrays: ArrayTable, unsettled: Iterable[Future[Any]]) -> None:
        self._names, self._arrays = names, arrays
        self._unsettled = {id(future): future for future in unsettled}
        # The objects are kept alive, so that no id is used again.
        self._places: dict[int, tuple[int, Any]] = {}
        self._waiting: collections.deque[Any] = collections.deque()

    def table(self, root: Any) -> list[Any]:
        """Returns the table of all objects that can be reached from a root, which is node 0.

        Raises:
          TypeError: an object has a type that a checkpoint cannot hold; the message names it.
        """
        for value in (root, *self._names.with_state()):
            self._of(value)
        nodes = []
        while self._waiting:
            nodes.append(self._node(self._waiting.popleft()))
        return nodes

    def _of(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, (*ARRAYS, np.generic)):
            return self._array(value)
        if isinstance(value, tuple):
            if type(value) is tuple:
                return ["tuple", *map(self._of, value)]
            return ["named", class_name(type(value)), *map(self._of, value)]
        if isinstance(value, types.MethodType):
            return ["method", self._of(value.__self__), value.__func__.__name__]
        if isinstance(value, type) or is_plain(value):
            return ["class", class_name(value)]
        if id(value) not in self._places:
            self._places[id(value)] = len(self._places), value
            self._waiting.append(value)
        return ["at", self._places[id(value)][0]]

    def _array(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return ["number", str(value.dtype), value.tobytes().hex()]
        if is_key(value):
            return encoded_key(value, self._arrays)
        if value.ndim == 0 and value.dtype.kind in "fiub":
            return encoded_scalar(value)
        kind = "jax" if isinstance(value, jax.Array) else "numpy"
        if kind == "jax" and value.weak_type:
            raise TypeError("a checkpoint cannot hold an array of weak type")
        return [kind, self._arrays.place(value)]

    def _node(self, value: Any) -> list[Any]:
        name = self._names.of(value)
        if name is not None:
            return self._built(name, value)
        if type(value) in (dict, collections.Counter):
            kind = "counter" if type(value) is collections.Counter else "dict"
            return [kind, *([self._of(k), self._of(v)] for k, v in value.items())]
        if isinstance(value, (list, set)):
            return [type(value).__name__, *map(self._of, value)]
        if isinstance(value, collections.deque):
            return ["deque", value.maxlen, *map(self._of, value)]
        if isinstance(value, Future):
            return self._future(value)
        if isinstance(value, JournaledCoroutine):
            return ["of", class_name(JournaledCoroutine), *self._attributes(_journal(value))]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._other(value)

    def _other(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind is functools.partial:
            return ["partial", *map(self._of, (value.func, value.args, value.keywords))]
        if kind is itertools.count:
            return ["count", int(repr(value)[len("count(") : -1])]
        if kind is np.random.Generator:
            return ["generator", value.bit_generator.state]
        if kind in _LOCKS:
            return ["lock", *(["again"] if kind is _LOCKS[1] else [])]
        if isinstance(value, Exception):
            return ["error", class_name(kind), self._of(value.args), self._of(value.__cause__)]
        if not is_ours(kind.__module__) and node_of(value) is not None:
            return ["tree", encode(value, self._arrays)]
        if is_ours(kind.__module__) or dataclasses.is_dataclass(value):
            return ["of", class_name(kind), *self._attributes(attributes(value))]
        raise TypeError(f"a checkpoint cannot hold a {kind.__module__}.{kind.__qualname__}")

    def _built(self, name: str, value: Any) -> list[Any]:
        """Encodes an object that existed before the run; if it may change, with its attributes."""
        if not has_state(value):
            return ["built", name]
        if isinstance(value, Future):
            return ["built", name, *self._future(value)[2:]]
        return ["built", name, *self._attributes(attributes(value))]

    def _attributes(self, found: dict[str, Any]) -> list[Any]:
        return [[name, self._of(value)] for name, value in found.items()]

    def _future(self, value: Future[Any]) -> list[Any]:
        found = attributes(value)
        waiting = [call for call in found["_callbacks"] if not isinstance(call, Noted)]
        found["_callbacks"] = waiting
        if id(value) in self._unsettled:  # the coroutines that wait for it will wait again
            found |= {"_settled": False, "_value": None, "_error": None, "_children": ()}
            found["_callbacks"] = []
        return ["of", class_name(Future), *self._attributes(found)]

    def _function(self, value: types.FunctionType) -> list[Any]:
        if code.is_of_module(value):
            return ["function", value.__module__, value.__qualname__]
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        rest = map(self._of, (value.__defaults__, value.__kwdefaults__))
        return ["closure", list(code.place_of(value)), list(map(self._of, cells)), *rest]


def _journal(journal: JournaledCoroutine) -> dict[str, Any]:
    """Returns a journal's attributes; its settled futures come with their values."""
    found = attributes(journal)
    found["entries"] = [
        (kind, what, what._value, what._error, tuple(what._children)) if kind == SETTLED
        else (kind, what)
        for kind, what in journal.entries
    ]  # fmt: skip
    running: dict[str, Any] = {"_coroutine": None, "_noted": {}, "_left": None, "_unkept": False}
    assert isinstance(journal._coroutine, Coroutine)
    return found | running
