"""Builds dataclasses and update rules from the fields of a config."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import optax

import dbjax.optim
from dbjax.arguments import (
    describe,
    fits,
    nearest,
    require_known,
)
from dbjax.errors import one_line


def listed(kind: type[Any], place: str, entries: Any) -> tuple[Any, ...]:
    """Builds a dataclass from each entry of a list; see `entry`."""
    return tuple(entry(kind, place, given) for given in entries)


def entry(kind: type[Any], place: str, given: Any) -> Any:
    """Builds a dataclass from an entry of a list.

    Raises:
      ValueError: the entry is not a mapping, or `make` refuses its fields.
    """
    if not isinstance(given, Mapping | ml_collections.ConfigDict):
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ValueError(f"{place}: {given!r} must be a dict of some of {names}")
    return make(kind, place, dict(given))


def make(kind: type[Any], place: str, fields: Mapping[str, Any], **others: Any) -> Any:
    """Builds a dataclass from a mapping; nested mappings become nested dataclasses or rules.

    Args:
      kind: the dataclass.
      place: the name of the mapping in errors.
      fields: values by field name.
      **others: fields that are already built.

    Raises:
      ValueError: a field is unknown, missing or wrong.
    """
    known = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in others}
    made = {name: _made(f"{place}.{name}", known.get(name), v) for name, v in fields.items()}
    require_known(place, made, known)
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in made:
            raise ValueError(f"{place} needs {parameter.name!r}")
    return kind(**made, **others)


def _made(place: str, hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return make(hint, place, value)
    if not {hint, *typing.get_args(hint)}.isdisjoint({optax.GradientTransformation}):
        if isinstance(value, str):
            raise ValueError(f"{place}={value!r} is a group of fields: write {place}.name={value}")
        if isinstance(value, Mapping):
            return rule(value)
    return value


def call(make: Callable[..., Any], place: str, arguments: Mapping[str, Any]) -> Any:
    """Calls a function with arguments by name.

    Args:
      make: the function.
      place: the name of the arguments in errors.
      arguments: values by name.

    Raises:
      ValueError: an argument is unknown, missing or wrong.
    """
    parameters = inspect.signature(make).parameters
    for name, value in arguments.items():
        if name not in parameters:
            raise ValueError(
                f"{place} has no argument {name!r}{nearest(name, parameters)} (given: {value!r})"
            )
        hint = _hint_of(make, name)
        if not fits(value, hint) or (isinstance(value, bool) and float in typing.get_args(hint)):
            raise ValueError(f"{place}: {name}={value!r} must be {describe(hint)}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{place}: {name}=nan must be a number")
        if isinstance(value, str) and "Callable" in str(make.__annotations__.get(name)):
            raise ValueError(
                f"{place}: {name}={value!r} must be a tree or a function, not a word; leave it "
                "out, or set it in a config file"
            )
    _require_momentum(parameters, place, arguments)
    for parameter in parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        needed = parameter.default is parameter.empty and not variadic
        if needed and parameter.name not in arguments:
            raise ValueError(f"{place} needs {parameter.name!r}: set it together with the name")
    try:
        return make(**arguments)
    except Exception as error:  # optax itself validates few arguments
        known = isinstance(error, TypeError | ValueError)
        raise ValueError(f"{place}: {one_line(error, kind=not known)}") from error


def _require_momentum(
    parameters: Mapping[str, inspect.Parameter], place: str, arguments: Mapping[str, Any]
) -> None:
    """Raises ValueError if an argument is set that has no effect without momentum."""
    if "momentum" not in parameters or parameters["momentum"].default is not None:
        return
    for name in ("nesterov", "accumulator_dtype", "dtype_momentum"):
        if arguments.get(name) and arguments.get("momentum") is None:
            raise ValueError(f"{place}: {name}={arguments[name]!r} has no effect: set momentum too")


def _hint_of(make: Callable[..., Any], parameter: str) -> Any:
    """The type of an argument; Any if optax annotates it with a name that it does not import."""
    annotation = make.__annotations__.get(parameter, Any)
    alone = types.SimpleNamespace(__annotations__={parameter: annotation})
    try:
        return typing.get_type_hints(alone, make.__globals__)[parameter]
    except (NameError, AttributeError):  # AttributeError: a class
        return Any


def rule(fields: Mapping[str, Any]) -> optax.GradientTransformation:
    """Builds an update rule of the parameter server from its fields.

    Args:
      fields: "name", a function of `dbjax.optim` or else of optax, and its arguments.

    Raises:
      ValueError: there is no such rule, or an argument is wrong.
    """
    arguments = dict(fields)
    name = arguments.pop("name")
    make = rule_function(name)
    if not callable(make):
        raise ValueError(f"no rule {name!r}{nearest(name, _rules())}")
    made = call(make, f"rule {name!r}", arguments)
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"{name!r} of optax is not a rule{nearest(name, _rules())}")
    return made


def rule_function(name: str) -> Any:
    """The function of `dbjax.optim`, or else of optax, that has the name; None if there is none."""
    return getattr(dbjax.optim, name, None) or getattr(optax, name, None)


def _rules() -> list[str]:
    """Names to suggest: dbjax's own rule, and all functions of optax that take a learning rate."""
    theirs = inspect.getmembers(optax, inspect.isfunction)
    rates = [name for name, make in theirs if "learning_rate" in inspect.signature(make).parameters]
    return ["downpour_adagrad", *(name for name in rates if not name.startswith("_"))]
