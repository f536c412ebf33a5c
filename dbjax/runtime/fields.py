"""Fields of dataclasses: whether they are of the types that they say, and large enough."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

_SHOWN = 80


def require_fields(place: str, instance: Any) -> None:
    """Raises ValueError, naming the first field of a dataclass that is of another type than said.

    For `__post_init__`, before values are compared: `"4" < 1` would be a traceback, and 1.5
    replicas no error at all.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        if not fits(value, hint):
            call = "; it is a class: call it" if isinstance(value, type) else ""
            raise ValueError(f"{place}.{name}={short_repr(value)} must be {describe(hint)}{call}")


def short_repr(value: Any) -> str:
    """A value as errors show it: on one line, and cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def require_at_least(place: str, least: float, **values: float | None) -> None:
    """Raises ValueError, naming the first value that is below `least`, or NaN; None may be.

    For fields that `require_fields` has passed.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{place}.{name}={value} must be at least {least}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a hint says; hints of other kinds fit anything.

    NumPy's integers and floats count as numbers; True and False do not.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    if hint in _SEQUENCES or origin in _SEQUENCES:
        same = len(parts) == 1 or (len(parts) == 2 and parts[1] is ...)
        return isinstance(value, (tuple, list)) and (
            not same or all(fits(item, parts[0]) for item in value)
        )
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(item, parts[1]) for item in value.values())
    if origin is collections.abc.Callable:
        return callable(value)
    if hint is Any or not isinstance(hint, type) or _cannot_be_asked(hint):
        return True
    return isinstance(value, hint) and not isinstance(value, type)


_NUMBERS: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real}
_SEQUENCES = (tuple, collections.abc.Collection)


def _cannot_be_asked(hint: type[Any]) -> bool:
    """Whether it is a protocol that is not `runtime_checkable`."""
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def describe(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is collections.abc.Callable:
        return "a function"
    parts = typing.get_args(hint)
    if parts and typing.get_origin(hint) in _SEQUENCES:
        return f"a tuple of {describe(parts[0])}"
    if parts and typing.get_origin(hint) is collections.abc.Mapping:
        return f"a dict of {describe(parts[1])}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
