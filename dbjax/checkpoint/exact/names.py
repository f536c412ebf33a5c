"""Names the objects that a program is built of.

A run that is resumed builds its program again with the same code. Objects that exist before the
run begins, such as compiled functions, data, nodes and handles, therefore need not be saved: each
has a name, which is the path that leads to it from the runtime. Following these paths also
visits everything that the results depend on; a digest of it shows whether two programs are equal.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np

from dbjax.checkpoint.encoding import class_name
from dbjax.checkpoint.exact.borders import (
    ANEW,
    ARRAYS,
    ATOMS,
    MOVING,
    SLOTTED,
    attributes,
    has_state,
    is_value,
)
from dbjax.runtime.virtual.service import VirtualService

_SEQUENCES = (list, tuple, deque)


@final
class Names:
    """The names of all objects that can be reached from a runtime before it runs.

    The state of a service has no names, because it is created again with the service.

    Args:
      runtime: the runtime, with its program placed.

    Attributes:
      digest: a digest of the program: its structure, its code, and all plain values given to it.
    """

    def __init__(self, runtime: Any) -> None:
        self._named: dict[int, tuple[str, Callable[[], Any]]] = {}
        self._found: dict[str, Callable[[], Any]] = {}
        self._lines = hashlib.sha256()
        self._seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is used again
        self._values: dict[Any, Any] = {}
        outer, inner = deque([("runtime", runtime)]), deque[tuple[str, Any]]()
        while outer or inner:  # services come last: what they share with others has a name
            within = not outer
            for path, value, deeper in self._look(*(outer or inner).popleft(), within):
                (inner if deeper else outer).append((path, value))
        self._seen.clear()
        self._values.clear()
        self.digest = self._lines.hexdigest()

    def with_state(self) -> Iterator[Any]:
        """Yields every object that has a name and may change."""
        found = (get() for get in self._found.values())
        return (value for value in found if value is not None and has_state(value))

    def of(self, value: Any) -> str | None:
        """Returns the name of an object, or None."""
        name, get = self._named.get(id(value), ("", _nothing))
        return name if get() is value else None

    def get(self, name: str) -> Any:
        """Returns the object of a name.

        Raises:
          ValueError: no object of this program has the name.
        """
        found = self._found.get(name, _nothing)()
        if found is None:
            raise ValueError(f"nothing in this program is called {name!r}")
        return found

    def _look(self, path: str, value: Any, inner: bool) -> Iterator[tuple[str, Any, bool]]:
        """Visits a value; yields the path and value of what it refers to, and whether it is inner.

        Args:
          path: the path that leads to the value.
          value: the value.
          inner: whether the value belongs to a service's state.
        """
        if isinstance(value, (*ATOMS, np.generic)):
            self._note(path, "" if inner else repr(value))
            return
        if isinstance(value, ARRAYS):
            self._note(path, "" if inner else f"{value.dtype}{value.shape}")
            return
        value = self._first(value)
        if id(value) in self._seen:
            self._note(path, self._named.get(id(value), ("again",))[0])
            return
        self._seen[id(value)] = value
        if not inner:
            self._note(path, class_name(type(value)))
        for step, part, deeper in self._parts(path, value, inner):
            yield f"{path}{step}", part, deeper

    def _first(self, value: Any) -> Any:
        """Returns the first of all equal values.

        A compiled program keeps the values of the first run in a process.
        """
        if not is_value(value):
            return value
        try:
            return self._values.setdefault(value, value)
        except TypeError:  # it holds something that cannot be hashed
            return value

    def _parts(self, path: str, value: Any, inner: bool) -> Iterator[tuple[str, Any, bool]]:
        if isinstance(value, dict):
            yield from ((f"[{k!r}]", v, inner) for k, v in value.items() if _is_key(k))
        elif isinstance(value, _SEQUENCES):
            yield from ((f"[{i}]", part, inner) for i, part in enumerate(value))
        elif isinstance(value, (set, frozenset)):
            yield from ((f"[{i}]", part, inner) for i, part in enumerate(sorted(value, key=repr)))
        elif isinstance(value, functools.partial):
            yield from (("()", value.func, inner), ("*", value.args, inner))
            yield "**", value.keywords, inner
        elif isinstance(value, types.MethodType):
            self._note(path, value.__func__.__qualname__)
            yield ".__self__", value.__self__, inner
        elif isinstance(value, type):
            self._note(path, class_name(value))
        elif isinstance(value, types.FunctionType):
            self._name(path, value, weakref.ref(value))
            yield from self._closure(path, value)
        elif isinstance(value, ANEW):
            return
        elif not has_state(value) and not is_value(value):
            self._name(path, value, functools.partial(_itself, value))
        else:
            yield from self._instance(path, value, inner)

    def _closure(self, path: str, function: types.FunctionType) -> Iterator[tuple[str, Any, bool]]:
        code = function.__code__
        self._note(path, f"{function.__qualname__} {_digest(code)}")
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield f".{name}", cell.cell_contents, False
        yield from ((f".{i}", v, False) for i, v in enumerate(function.__defaults__ or ()))
        yield from ((f".{k}", v, False) for k, v in (function.__kwdefaults__ or {}).items())

    def _instance(self, path: str, value: Any, inner: bool) -> Iterator[tuple[str, Any, bool]]:
        fixed = is_value(value)
        if isinstance(value, SLOTTED):
            if inner:
                return
            self._name(path, value, functools.partial(_itself, value))
        elif getattr(value, "__dict__", None) is not None and (fixed or not inner):
            self._name(path, value, weakref.ref(value))
        for name, part in attributes(value).items():
            if name in MOVING or (fixed and name not in value.__dataclass_fields__):
                continue
            plain = not fixed and isinstance(part, ATOMS)
            if not plain:
                below = inner or (isinstance(value, VirtualService) and name == "service")
                yield f".{name}", part, below

    def _name(self, path: str, value: Any, get: Callable[[], Any]) -> None:
        self._named[id(value)] = path, get
        self._found[path] = get

    def _note(self, path: str, what: str) -> None:
        self._lines.update(f"{path} {what}\n".encode())


def _is_key(key: Any) -> bool:
    return isinstance(key, ATOMS) or (isinstance(key, tuple) and all(map(_is_key, key)))


def _itself(value: Any) -> Any:
    return value


def _nothing() -> None:
    return None


def _digest(code: types.CodeType) -> str:
    """Returns a digest of what a function does: its instructions, names and constants."""
    message = repr((code.co_code, code.co_names, list(map(_constant, code.co_consts))))
    return hashlib.sha256(message.encode()).hexdigest()


def _constant(one: Any) -> str:
    """Returns a text of a constant that is the same in every process; a set's order is not."""
    if isinstance(one, types.CodeType):
        return _digest(one)
    if isinstance(one, (frozenset, tuple)):
        parts = list(map(_constant, one))
        return repr(sorted(parts) if isinstance(one, frozenset) else parts)
    return repr(one)
