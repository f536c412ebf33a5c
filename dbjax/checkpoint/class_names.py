"""What the modules that are imported already have under a name. Nothing is imported for it."""

from __future__ import annotations

import sys
from typing import Any


class Unknown(ValueError):
    """No module that is imported has it."""


def class_name(kind: Any) -> str:
    """Of a class, as `class_named` takes it."""
    return f"{kind.__module__}:{kind.__qualname__}"


def lookup(module: str, path: str) -> Any:
    """What a module has under that path, or None."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def class_named(name: str) -> type[Any]:
    """The class of that name.

    Raises:
      Unknown: there is none.
    """
    module, _, path = name.partition(":")
    found = lookup(module, path)
    if not isinstance(found, type):
        raise Unknown(f"{name!r} is no class that is known here")
    return found


def named_tuple_class(name: str) -> type[Any]:
    """The named tuple of that name.

    Raises:
      ValueError: it is none.
    """
    found = class_named(name)
    if not issubclass(found, tuple) or getattr(found, "_make", None) is None:
        raise ValueError(f"{name!r} is no named tuple")
    return found
