"""The classes and functions that a checkpoint may name: those of dbjax and of the algorithm.

A file that names anything else is refused, and nothing is imported for it.
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
    """Allows checkpoints to name code of the algorithm's package, which runs anyway.

    Args:
      module: the name of a module of the package.
    """
    _PACKAGES.add(module.partition(".")[0])


def is_ours(module: str) -> bool:
    """Returns whether a module belongs to dbjax or to an algorithm's package."""
    return module.partition(".")[0] in _PACKAGES


def require_ours(module: str) -> None:
    """Raises ValueError unless a module is imported and belongs to dbjax or to an algorithm."""
    if not is_ours(module) or module not in sys.modules:
        raise ValueError(f"a checkpoint may not name {module!r}")


def instance_class(name: str) -> type[Any]:
    """Returns a class whose instances a checkpoint may hold.

    It is a class of dbjax or of an algorithm's package, or any dataclass that is imported.

    Raises:
      ValueError: it is neither.
    """
    found = class_named(name)
    if not is_ours(name.partition(":")[0]) and not dataclasses.is_dataclass(found):
        raise ValueError(f"{name!r} is not a class whose instances a checkpoint may hold")
    return found


def error_class(name: str) -> type[BaseException]:
    """Returns a class of exceptions of dbjax, of an algorithm's package, or of Python.

    Raises:
      ValueError: it is not such a class.
    """
    found = class_named(name)
    if not issubclass(found, Exception) or not (is_ours(found.__module__) or _builtin(found)):
        raise ValueError(f"{name!r} is not an error that a checkpoint may hold")
    return found


def is_plain(value: Any) -> bool:
    """Returns whether a value is a built-in function of Python that a checkpoint may name."""
    return isinstance(value, types.BuiltinFunctionType) and value in _PLAIN


def named(name: str) -> Any:
    """Looks up a class or a built-in function that a checkpoint refers to as a callable.

    Args:
      name: its name, as `class_name` makes it.

    Raises:
      ValueError: it belongs neither to dbjax or an algorithm's package, nor to the allowed
        built-ins.
    """
    module, _, path = name.partition(":")
    found = getattr(builtins, path, None) if module == "builtins" else class_named(name)
    if found is None or not (is_ours(found.__module__) or found in _PLAIN):
        raise ValueError(f"a checkpoint may not name {name!r}")
    return found


def _builtin(kind: type[Any]) -> bool:
    return getattr(builtins, kind.__name__, None) is kind
