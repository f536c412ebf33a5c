"""Numbers that describe machines, times and randomness: which of them can be used."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

_SEEDS = 2**32  # JAX tells no more of them apart unless it computes in 64 bits


def require_seed(name: str, value: Any) -> int:
    """The seed, as an integer of Python.

    Raises:
      ValueError: it is no integer, or one that some generator does not take.
    """
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        seed = -1
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"{name}={value!r} must be in 0 ... {_SEEDS - 1}, a whole number")
    return seed


def require_positive(name: str, value: Any, otherwise: str = "") -> None:
    """Raises ValueError unless the value is a finite number above 0.

    Args:
      otherwise: how the error ends: what else may be given.
    """
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} must be above 0 and finite{otherwise}")


def require_positive_or_infinite(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number above 0."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name}={value!r} must be above 0")


def require_finite(name: str, value: Any, otherwise: str = "") -> None:
    """Raises ValueError unless the value is a finite number of at least 0."""
    if not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name}={value!r} must be finite and at least 0{otherwise}")


def require_probability(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} is outside [0, 1]")


def require_count(name: str, value: Any) -> None:
    """Raises ValueError unless the value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: at least 1, a whole number")


def is_number(value: Any) -> bool:
    """Whether the value is a real number; a truth value is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
