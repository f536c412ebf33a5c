"""Which classes and functions a checkpoint may name: those of this library and of its methods.

A file that names anything else is refused; nothing is imported for it.
"""

from __future__ import annotations

import builtins
import dataclasses
import sys
import types
from typing import Any

from dbjax.checkpoint.encoding import class_named

_PACKAGES = {"dbjax"}
_PLAIN = {list, tuple, dict, set, int, float, str, bool, sum, min, max, len, sorted}


def add_package_of(module: str) -> None:
    """Whoever wrote the algorithm is trusted as dbjax is: its code runs anyway."""
    _PACKAGES.add(module.partition(".")[0])


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in _PACKAGES


def require_ours(module: str) -> None:
    """Raises ValueError where a module is none of dbjax, nor of the algorithm's package."""
    if not is_ours(module) or module not in sys.modules:
        raise ValueError(f"a checkpoint may not name {module!r}")


def instance_class(name: str) -> type[Any]:
    """A class of which instances may be made: one of ours, or any dataclass that is imported.

    Raises:
      ValueError: it is neither.
    """
    found = class_named(name)
    if not is_ours(name.partition(":")[0]) and not dataclasses.is_dataclass(found):
        raise ValueError(f"{name!r} is no class of which a checkpoint may hold instances")
    return found


def error_class(name: str) -> type[BaseException]:
    """An exception of ours or of Python.

    Raises:
      ValueError: it is none.
    """
    found = class_named(name)
    if not issubclass(found, Exception) or not (is_ours(found.__module__) or _builtin(found)):
        raise ValueError(f"{name!r} is no error of which a checkpoint may hold instances")
    return found


def is_plain(value: Any) -> bool:
    """Whether it is a function of Python's that a checkpoint may name."""
    return isinstance(value, types.BuiltinFunctionType) and value in _PLAIN


def named(name: str) -> Any:
    """A class that is used as a function, of ours, or a plain function of Python's.

    Raises:
      ValueError: it is neither.
    """
    module, _, path = name.partition(":")
    found = getattr(builtins, path, None) if module == "builtins" else class_named(name)
    if found is None or not (is_ours(found.__module__) or found in _PLAIN):
        raise ValueError(f"a checkpoint may not name {name!r}")
    return found


def _builtin(kind: type[Any]) -> bool:
    return getattr(builtins, kind.__name__, None) is kind
