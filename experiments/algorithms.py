"""The algorithms, batch methods and update rules that a config can name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

import dbjax
import dbjax.algorithms
import dbjax.optim
from dbjax.arguments import (
    nearest,
)
from dbjax.data import (
    option_hints,
)
from dbjax.models import argument_hints
from dbjax.models.model import CONFIGS as MODELS
from experiments import construct

BATCH_METHODS: dict[str, type[Any]] = {
    "lbfgs": dbjax.optim.Lbfgs,
    "conjugate_gradients": dbjax.optim.ConjugateGradients,
    "gradient_descent": dbjax.optim.GradientDescent,
}


def algorithms() -> list[str]:
    """Names of the algorithms: the modules of `dbjax.algorithms` that define `program`."""
    names = [m.name for m in pkgutil.iter_modules(dbjax.algorithms.__path__)]
    return [n for n in names if hasattr(_module(n), "program")]


def _module(name: str) -> Any:
    return importlib.import_module(f"dbjax.algorithms.{name}")


def algorithm(config: ml_collections.ConfigDict) -> Any:
    """Builds the Config of the algorithm that the config names.

    Raises:
      ValueError: there is no such algorithm, or a field of `options` or `rule` is wrong.
    """
    if config.algorithm not in algorithms():
        raise ValueError(
            f"no algorithm {config.algorithm!r}{nearest(config.algorithm, algorithms())}"
        )
    kind, options = _module(config.algorithm).Config, config.options.to_dict()
    for name in {"rule", "method"} & set(options):
        raise ValueError(
            f"options.{name}={options[name]!r} has no effect: set rule.name and the rule's "
            "arguments, such as rule.learning_rate"
        )
    given = (
        {"rule": construct.rule} if "rule" in typing.get_type_hints(kind) else {"method": method}
    )
    chosen = {name: make(config.rule.to_dict()) for name, make in given.items()}
    return construct.make(kind, "options", options, **chosen)


def open_fields(config: ml_collections.ConfigDict) -> list[str]:
    """Names of the fields that the config may have besides those of `defaults`.

    These are the arguments of the algorithm, rule, data set and model that the config names, such
    as "rule.learning_rate".
    """
    model, rule_name = config.model.name, config.rule.name
    make = BATCH_METHODS.get(rule_name) or construct.rule_function(rule_name)
    known = {
        "options": _fields(_module(config.algorithm).Config)
        if config.algorithm in algorithms()
        else (),
        "rule": inspect.signature(make).parameters if callable(make) else (),
        "data": option_hints(config.data.name),
        "model": argument_hints(model) if model in MODELS else (),
    }
    return [f"{group}.{name}" for group, names in known.items() for name in names]


def _fields(kind: type[Any]) -> list[str]:
    """Names of the fields of an algorithm's Config, except the rule, which has its own group."""
    return [f.name for f in dataclasses.fields(kind) if f.name not in ("rule", "method")]


def method(fields: Mapping[str, Any]) -> dbjax.optim.Method:
    """Builds a batch method from its fields.

    Args:
      fields: "name", a key of `BATCH_METHODS`, and the fields of that class.

    Raises:
      ValueError: there is no such method, or a field is wrong.
    """
    arguments = dict(fields)
    name = arguments.pop("name")
    if name not in BATCH_METHODS:
        raise ValueError(f"rule.name: no batch method {name!r}{nearest(name, BATCH_METHODS)}")
    made: dbjax.optim.Method = construct.make(BATCH_METHODS[name], f"rule {name!r}", arguments)
    return made
