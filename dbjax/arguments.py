"""Arguments that a user gives by name: whether there are such, and of their types."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dbjax.runtime.fields import describe as describe
from dbjax.runtime.fields import fits as fits
from dbjax.runtime.fields import require_at_least as require_at_least
from dbjax.runtime.fields import require_fields as require_fields
from dbjax.runtime.quantities import require_seed as require_seed

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
            raise ValueError(f"{place} has no {name!r}{nearest(name, hints)} (given: {value!r})")
        if not fits(value, hints[name]):
            raise ValueError(f"{place}: {name}={value!r} must be {describe(hints[name])}")


def require_at_least_one(**values: int) -> None:
    """Raises ValueError, naming the first value that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def require_labels(name: str, labels: Any, classes: int) -> None:
    """Raises ValueError unless labels are integers in 0 .. classes - 1, one for each example."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: labels are {labels.dtype}{list(labels.shape)}; they must be integers, one "
            f"for each example, of {classes} classes"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= classes:
        remedy = "leave such examples out, or set the number of classes right"
        if low == 1 and high == classes:
            remedy = "they count from 1: subtract 1"
        elif low == -1:
            remedy = "-1 stands for no label: leave such examples out"
        raise ValueError(
            f"{name}: labels go from {low} to {high}, and {classes} classes have the labels 0 to "
            f"{classes - 1}; {remedy}"
        )


def keyword_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function, and their types."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
