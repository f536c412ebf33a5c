"""Checks of the names, types and values of arguments.

Every failed check raises an error of one line, which says what to do.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

# The cutoff of `difflib`: it suggests learning_rate for rate, but not warm_start_s for steps_per_s.
_CLOSE = 0.45
_LISTED = 12  # how many names an error lists


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error about an unknown name: a suggestion.

    It suggests the nearest known name. If none is near, it lists the known names, at most 12.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, _CLOSE)
    if close:
        return f"; nearest: {close[0]!r}"
    more = ", ..." if len(known) > _LISTED else ""
    return f"; there are: {', '.join(known[:_LISTED])}{more}" if known else "; there are none"


def require_known(place: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Checks arguments that were given by name against type hints.

    Args:
      place: what the arguments belong to, such as "dbjax.run".
      given: the arguments, by name.
      hints: the type of every argument that exists, by name.

    Raises:
      ValueError: an argument is unknown, or does not have the type of its hint.
    """
    for name, value in given.items():
        if name not in hints:
            raise ValueError(f"{place} has no {name!r}{nearest(name, hints)} (given: {value!r})")
        if not fits(value, hints[name]):
            raise ValueError(f"{place}: {name}={value!r} must be {describe(hints[name])}")


def require_labels(name: str, labels: Any, classes: int) -> None:
    """Raises ValueError unless labels are integers from 0 to classes - 1, one for each example."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: labels are {labels.dtype}{list(labels.shape)}; they must be integers below "
            f"{classes}, one for each example"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= classes:
        remedy = "leave out such examples, or correct the number of classes"
        if low == 1 and high == classes:
            remedy = "they count from 1: subtract 1"
        elif low == -1:
            remedy = "-1 stands for no label: leave out such examples"
        raise ValueError(
            f"{name}: labels go from {low} to {high}, but {classes} classes have the labels 0 to "
            f"{classes - 1}; {remedy}"
        )


def keyword_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of a function's keyword-only parameters, by name."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


_SHOWN = 80  # how many characters of a value an error shows


def require_fields(place: str, instance: Any) -> None:
    """Raises ValueError unless every field of a dataclass has the type of its annotation.

    Call it in `__post_init__` before comparing values: `"4" < 1` would raise an unhelpful
    TypeError, and 1.5 replicas would raise nothing.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        if not fits(value, hint):
            call = "; it is a class: call it" if isinstance(value, type) else ""
            raise ValueError(f"{place}.{name}={short_repr(value)} must be {describe(hint)}{call}")


def short_repr(value: Any) -> str:
    """Returns the `repr` of a value for an error: on one line, at most 80 characters of it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def require_at_least(place: str, least: float, **values: float | None) -> None:
    """Raises ValueError if a value is NaN or below `least`; None is allowed.

    Args:
      place: what the values belong to, such as "Task"; "" if their names say enough.
      least: the smallest value that is allowed.
      **values: numbers, by name. The caller has checked their types.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            where = f"{place}.{name}" if place else name
            raise ValueError(f"{where}={value} must be at least {least}")


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a value has the type of a hint.

    NumPy's integers and floats count as numbers; True and False do not. Kinds of hints that this
    function does not know fit every value.
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
        return True  # such as jaxtyping's shapes: `Task` checks its arrays in more detail
    return isinstance(value, hint) and not isinstance(value, type)


_NUMBERS: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real}
_SEQUENCES = (tuple, collections.abc.Collection)


def _cannot_be_asked(hint: type[Any]) -> bool:
    """Returns whether `isinstance` would fail: for jaxtyping and protocols not checked at run time.

    Those are the protocols that are not decorated with `runtime_checkable`.
    """
    if hint.__module__.startswith("jaxtyping"):
        return True
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def describe(hint: Any) -> str:
    """Returns the words by which an error names a type."""
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


_SEEDS = 2**32  # JAX does not distinguish more seeds unless it computes in 64 bits


def require_seed(name: str, value: Any) -> int:
    """Checks a seed and returns it as a Python integer.

    Raises:
      ValueError: the value is not an integer, or is outside 0 to 2**32 - 1, the seeds that every
        generator accepts.
    """
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        seed = -1
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"{name}={value!r} must be a whole number from 0 to {_SEEDS - 1}")
    return seed


def require_positive(name: str, value: Any, otherwise: str = "") -> None:
    """Raises ValueError unless the value is a finite number above 0.

    Args:
      name: the name of the value.
      value: the value.
      otherwise: the end of the error, which says what else may be given, such as "; or None".
    """
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} must be above 0 and finite{otherwise}")


def require_positive_or_infinite(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number above 0, possibly infinity."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name}={value!r} must be above 0")


def require_finite(name: str, value: Any, otherwise: str = "") -> None:
    """Raises ValueError unless the value is a finite number of at least 0.

    `otherwise` is the end of the error, as in `require_positive`.
    """
    if not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name}={value!r} must be finite and at least 0{otherwise}")


def require_probability(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} is outside [0, 1]")


def is_number(value: Any) -> bool:
    """Returns whether the value is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
