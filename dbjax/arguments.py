"""Arguments that a user gives by name: whether there are such, and of their types."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

_CLOSE = 0.45  # of `difflib`: learning_rate for rate, but not warm_start_s for steps_per_s
_LISTED = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error ends that names the nearest of the right names, or, if none is near, all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, _CLOSE)
    if close:
        return f"; nearest: {close[0]!r}"
    more = ", ..." if len(known) > _LISTED else ""
    return f"; there are: {', '.join(known[:_LISTED])}{more}" if known else "; there are none"


def require_known(place: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the first that is unknown, or of another type than its hint."""
    for name, value in given.items():
        if name not in hints:
            raise ValueError(f"{place} has no {name!r}{nearest(name, hints)}")
        if not fits(value, hints[name]):
            raise ValueError(f"{place}: {name}={value!r} must be {describe(hints[name])}")


def require_at_least_one(**values: int) -> None:
    """Raises ValueError, naming the first value that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def keyword_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function, and their types."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a hint says; hints of other kinds fit anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if hint in (int, float, str):
        numbers = (int, float) if hint is float else hint
        return isinstance(value, numbers) and not isinstance(value, bool)
    if hint in (bool, type(None)):
        return isinstance(value, hint)
    if hint is tuple or origin in (tuple, Collection):
        return isinstance(value, (tuple, list))
    return True


def describe(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
