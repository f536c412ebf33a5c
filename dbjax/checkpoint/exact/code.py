"""Functions by where they stand in the source of a module that is imported already."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dbjax.checkpoint.encoding import lookup
from dbjax.checkpoint.exact.ours import require_ours

Place = tuple[str, str, int, int]  # module, qualified name, first line, which of those there


def is_of_module(function: types.FunctionType) -> bool:
    """Whether its module has it under its name."""
    return lookup(function.__module__, function.__qualname__) is function


def of_module(module: str, name: str) -> Any:
    """The function of that name.

    Raises:
      ValueError: there is none.
    """
    require_ours(module)
    found = lookup(module, name)
    if not isinstance(found, types.FunctionType):
        raise ValueError(f"{module} has no function {name!r}")
    return found


def place_of(function: types.FunctionType) -> Place:
    """Of a closure or a lambda.

    Raises:
      TypeError: its module's source does not show it.
    """
    code, module = function.__code__, function.__module__
    there = _codes(module).get((code.co_qualname, code.co_firstlineno), [])
    if code not in there:
        raise TypeError(f"{module}.{function.__qualname__} is not in its module's source")
    return module, code.co_qualname, code.co_firstlineno, there.index(code)


def made_of(place: Place) -> types.FunctionType:
    """The function at that place, over empty cells.

    Raises:
      ValueError: there is none.
    """
    module, name, line, which = place
    require_ours(module)
    there = _codes(module).get((name, line), [])
    if not 0 <= which < len(there):
        raise ValueError(f"{module} has no function {name!r} in line {line}")
    code = there[which]
    cells = tuple(types.CellType() for _ in code.co_freevars)
    make_node = types.FunctionType(code, vars(sys.modules[module]), None, None, cells)
    make_node.__qualname__ = name
    return make_node


@functools.cache
def _codes(module: str) -> dict[tuple[str, int], list[types.CodeType]]:
    """All functions of a module, compiled from its source and not run."""
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
