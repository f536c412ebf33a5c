"""Identifies functions by their place in the source of a module that is already imported."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dbjax.checkpoint.encoding import lookup
from dbjax.checkpoint.exact.ours import require_ours

# The module, the qualified name, the first line, and the index among such functions.
Place = tuple[str, str, int, int]


def is_of_module(function: types.FunctionType) -> bool:
    """Returns whether a function can be found in its module by its qualified name."""
    return lookup(function.__module__, function.__qualname__) is function


def of_module(module: str, name: str) -> Any:
    """Returns a function of a module by its qualified name.

    Raises:
      ValueError: the module has no such function, or a checkpoint may not name the module.
    """
    require_ours(module)
    found = lookup(module, name)
    if not isinstance(found, types.FunctionType):
        raise ValueError(f"{module} has no function {name!r}")
    return found


def place_of(function: types.FunctionType) -> Place:
    """Returns the place of a closure or a lambda in the source of its module.

    Raises:
      TypeError: the source does not contain it.
    """
    code, module = function.__code__, function.__module__
    there = _codes(module).get((code.co_qualname, code.co_firstlineno), [])
    if code not in there:
        raise TypeError(f"{module}.{function.__qualname__} is not in its module's source")
    return module, code.co_qualname, code.co_firstlineno, there.index(code)


def made_of(place: Place) -> types.FunctionType:
    """Makes the function at a place, with empty cells for its free variables.

    Raises:
      ValueError: there is no function at that place, or a checkpoint may not name the module.
    """
    module, name, line, which = place
    require_ours(module)
    there = _codes(module).get((name, line), [])
    if not 0 <= which < len(there):
        raise ValueError(f"{module} has no function {name!r} on line {line}")
    code = there[which]
    cells = tuple(types.CellType() for _ in code.co_freevars)
    function = types.FunctionType(code, vars(sys.modules[module]), None, None, cells)
    function.__qualname__ = name
    return function


@functools.cache
def _codes(module: str) -> dict[tuple[str, int], list[types.CodeType]]:
    """Returns all functions of a module, compiled from its source without running it."""
    path = getattr(sys.modules[module], "__file__", None)
    source = Path(path).read_bytes() if path is not None and Path(path).exists() else b""
    code = compile(source, path or module, "exec", dont_inherit=True)
    found: dict[tuple[str, int], list[types.CodeType]] = {}
    for inner in _inner(code):
        found.setdefault((inner.co_qualname, inner.co_firstlineno), []).append(inner)
    return found


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inner(constant)
