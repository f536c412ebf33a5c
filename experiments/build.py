"""Builds the library's types from a config; no other module knows both."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import dbjax
import dbjax.algorithms
import dbjax.optim
from dbjax.arguments import (
    describe,
    fits,
    nearest,
    require_at_least,
    require_known,
    require_positive,
    require_seed,
)
from dbjax.data import (
    IN_MEMORY,
    Examples,
    MostFrequent,
    Splits,
    load,
    option_hints,
    require_options,
)
from dbjax.errors import one_line
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import Model, argument_hints, build, require_arguments
from dbjax.models.model import CONFIGS as MODELS
from dbjax.runtime.cluster import matches
from dbjax.runtime.ray import RayOptions
from dbjax.train import RuntimeName
from dbjax.types import Metrics, Params
from experiments.defaults import require_whole

BATCH_METHODS: dict[str, type[Any]] = {
    "lbfgs": dbjax.optim.Lbfgs,
    "conjugate_gradients": dbjax.optim.ConjugateGradients,
    "gradient_descent": dbjax.optim.GradientDescent,
}
RUNTIMES = typing.get_args(RuntimeName)
_SEVERAL, _NODES = ("replica/{}", "shard/{}", "shard/{}/backup"), 10_000  # possible node names
_LISTED = (("failures", dbjax.Failure), ("outages", dbjax.Outage), ("links", dbjax.Link))


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
    given = {"rule": rule} if "rule" in typing.get_type_hints(kind) else {"method": method}
    chosen = {name: make(config.rule.to_dict()) for name, make in given.items()}
    return _make(kind, "options", options, **chosen)


def open_fields(config: ml_collections.ConfigDict) -> list[str]:
    """Names of the fields that the config may have besides those of `defaults`.

    These are the arguments of the algorithm, rule, data set and model that the config names, such
    as "rule.learning_rate".
    """
    model, rule_name = config.model.name, config.rule.name
    make = BATCH_METHODS.get(rule_name) or _rule(rule_name)
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
    made: dbjax.optim.Method = _make(BATCH_METHODS[name], f"rule {name!r}", arguments)
    return made


def rule(fields: Mapping[str, Any]) -> optax.GradientTransformation:
    """Builds an update rule of the parameter server from its fields.

    Args:
      fields: "name", a function of `dbjax.optim` or else of optax, and its arguments.

    Raises:
      ValueError: there is no such rule, or an argument is wrong.
    """
    arguments = dict(fields)
    name = arguments.pop("name")
    make = _rule(name)
    if not callable(make):
        raise ValueError(f"no rule {name!r}{nearest(name, _rules())}")
    made = _call(make, f"rule {name!r}", arguments)
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"{name!r} of optax is not a rule{nearest(name, _rules())}")
    return made


def _rule(name: str) -> Any:
    return getattr(dbjax.optim, name, None) or getattr(optax, name, None)


def _rules() -> list[str]:
    """Names to suggest: dbjax's own rule, and all functions of optax that take a learning rate."""
    theirs = inspect.getmembers(optax, inspect.isfunction)
    rates = [name for name, make in theirs if "learning_rate" in inspect.signature(make).parameters]
    return ["downpour_adagrad", *(name for name in rates if not name.startswith("_"))]


def cluster(config: ml_collections.ConfigDict) -> dbjax.Cluster | None:
    """Builds the modelled cluster; None if the runtime is real and needs no model.

    Raises:
      ValueError: a field of `cluster` is wrong.
    """
    if config.runtime != "virtual":
        return None
    fields = dict(config.cluster)
    machine = _make(dbjax.Machine, "cluster.machine", dict(fields.pop("machine")))
    machines = {
        pattern: _entry(dbjax.Machine, f"cluster.machines[{pattern!r}]", machine_fields)
        for pattern, machine_fields in dict(fields.pop("machines")).items()
    }
    listed = {name: _listed(kind, f"cluster.{name}", fields.pop(name)) for name, kind in _LISTED}
    _require_names(machines)
    given = {"machine": machine, "machines": machines, **listed}
    made: dbjax.Cluster = _make(dbjax.Cluster, "cluster", fields | given)
    return made


def _require_names(patterns: Iterable[str]) -> None:
    """Raises ValueError if a pattern matches no possible node name.

    A pattern that merely matches no node of this run is accepted, and the run logs a warning: a
    command line may ask for fewer replicas than the config file describes machines for.
    """
    for pattern in patterns:
        several = (name.format(k) for k in range(_NODES) for name in _SEVERAL)
        if not any(matches(pattern, n) for n in itertools.chain(("coordinator",), several)):
            raise ValueError(
                f"cluster.machines[{pattern!r}] matches no node name; nodes are called replica/0, "
                "shard/0, shard/0/backup and so on, and coordinator (Sandblaster's)"
            )


def require_sound(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if a field is wrong; checks all that needs neither data nor network."""
    require_whole(config)
    if config.runtime not in RUNTIMES:
        names = " nor ".join(map(repr, RUNTIMES))
        raise ValueError(f"runtime={config.runtime!r} is neither {names}")
    _require_numbers(config)
    algorithm(config)
    cluster(config)
    ray_options(config)
    require_options(**config.data)
    require_arguments(**config.model)
    if config.data_dir is not None and config.data.name in IN_MEMORY:
        raise ValueError(
            f"data_dir={config.data_dir!r} has no effect: data {config.data.name!r} is held in "
            "memory only; leave it out"
        )


def _require_numbers(config: ml_collections.ConfigDict) -> None:
    for name in ("batch_size", "evaluations", "evaluate_examples"):
        require_at_least("", 1, **{name: config[name]})
    for name, value in (
        ("max_spans", config.max_spans),
        ("checkpoint.keep", config.checkpoint.keep),
    ):
        if value < 0:
            raise ValueError(f"{name}={value} must be at least 0")
    require_at_least("", 1, **{"sharding.devices": config.sharding.devices})
    for name, seed in (("seed", config.seed), ("data_seed", config.data_seed)):
        if seed is not None:
            require_seed(name, seed)
    if config.until_s is not None:
        require_positive("until_s", config.until_s, "; or none, with options.steps")
    elif algorithm(config).steps is None:
        raise ValueError("nothing would end this run: give until_s, or options.steps")
    _every(config)


def _every(config: ml_collections.ConfigDict) -> dbjax.Every:
    return dbjax.Every(config.checkpoint.every_s, config.checkpoint.every_updates)


def ray_options(config: ml_collections.ConfigDict) -> RayOptions | None:
    """Builds the options of the Ray runtime; None for another runtime.

    Raises:
      ValueError: a field of `ray` is wrong.
    """
    if config.runtime != "ray":
        return None
    made: RayOptions = _make(RayOptions, "ray", config.ray.to_dict())
    return made


def clock(config: ml_collections.ConfigDict) -> str:
    """The name of the run's clock: "virtual" or "wall"."""
    return "virtual" if config.runtime == "virtual" else "wall"


def run_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `dbjax.run` that say where and how long to run.

    Raises:
      ValueError: a field is wrong.
    """
    return {
        "runtime": config.runtime,
        "cluster": cluster(config),
        "until_s": config.until_s,
        "evaluate_every_s": None if config.until_s is None else config.until_s / config.evaluations,
        "checkpoint_every": _every(config),
        "seed": config.seed,
        "ray": ray_options(config),
    }


def task(config: ml_collections.ConfigDict) -> dbjax.Task:
    """Loads the data, initialises the network, and builds the task from both.

    Raises:
      ValueError: a field of `data`, `model` or `sharding` is wrong, or data is missing.
    """
    require_arguments(**config.model)  # before data is generated, which may take long
    splits = _splits(config)
    if config.batch_size > len(splits.train):
        raise ValueError(
            f"batch_size={config.batch_size} is more than all {len(splits.train)} examples"
        )
    model = dict(config.model)
    network = build(
        model.pop("name"),
        inputs=int(np.prod(splits.input_shape)),
        classes=splits.num_classes,
        seed=config.seed,
        **model,
    )
    sharding = _sharding(config.sharding, network)
    evaluate = evaluation(network, splits.train, splits.test, config.evaluate_examples)
    guess = most_frequent(network, splits.test, config.evaluate_examples)
    return dbjax.Task(
        network.params,
        network.loss,
        splits.train,
        config.batch_size,
        evaluate,
        config.data_seed,
        sharding,
        most_frequent=guess,
    )


def _splits(config: ml_collections.ConfigDict) -> Splits:
    """Loads the data; errors name the data set and its options."""
    options = dict(config.data)
    name = options.pop("name")
    try:
        return load(name, data_dir=config.data_dir, **options)
    except ValueError as error:
        if not options or any(word in str(error) for word in (repr(name), *options)):
            raise
        chosen = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(f"data {name!r} with {chosen}: {error}") from error


def make_host_devices(config: ml_collections.ConfigDict) -> None:
    """Splits this machine's CPUs into `sharding.host_devices` JAX devices.

    Call this before anything that starts JAX.

    Raises:
      ValueError: JAX has already started with fewer devices, or the number is below 1.
    """
    count = config.sharding.host_devices
    if count is None:
        return
    if count < 1:
        raise ValueError(f"sharding.host_devices={count} must be at least 1, or none")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.devices()) < count:
            raise ValueError(
                f"sharding.host_devices={count}: JAX has started with {len(jax.devices())} devices "
                "in this process; start a new process"
            ) from error


def _sharding(fields: ml_collections.ConfigDict, network: Model) -> ModelSharding | None:
    """The sharding of the network over `sharding.devices`; None for a single device.

    Raises:
      ValueError: the network cannot be sharded that way, or there are too few devices.
    """
    if fields.devices == 1 and fields.how is None:
        return None
    sharding = network.sharding(fields.devices, fields.how)
    if len(jax.local_devices()) < fields.devices:
        raise ValueError(
            f"sharding.devices={fields.devices}, but JAX has {len(jax.local_devices())}; on CPUs "
            f"give --config.sharding.host_devices={fields.devices} or more"
        )
    return sharding if fields.devices > 1 else None


def evaluation(
    network: Model, train: Examples, test: Examples, examples: int
) -> Callable[[Params], Metrics]:
    """Returns the evaluation function of a task.

    It computes the accuracy on fixed random samples of the training and the hold-out set, as
    "train_accuracy" and "test_accuracy" from 0 to 1; for a regression, the hold-out loss alone, as
    "test_loss".

    Args:
      network: the network to evaluate.
      train: the training examples.
      test: the hold-out examples.
      examples: the number of examples to sample from each set.

    Raises:
      ValueError: `examples` is below 1.
    """
    if examples < 1:
        raise ValueError(f"evaluate_examples={examples} must be at least 1")
    held_out = jax.tree.map(jnp.asarray, _sample(test, examples))
    if network.correct is None:
        loss = jax.jit(network.loss)
        return lambda params: {"test_loss": float(loss(params, held_out))}
    seen = jax.tree.map(jnp.asarray, _sample(train, examples))
    sets = {"train_accuracy": seen, "test_accuracy": held_out}
    correct = jax.jit(network.correct)

    def evaluate(params: Params) -> Metrics:
        return {
            name: float(correct(params, batch)) / len(batch.labels) for name, batch in sets.items()
        }

    return evaluate


def most_frequent(network: Model, test: Examples, examples: int) -> MostFrequent | None:
    """The most frequent class of the examples that hold-out accuracy is measured on.

    Takes the same arguments as `evaluation`. Returns None for a regression.
    """
    return MostFrequent.of(_sample(test, examples).labels) if network.correct else None


def _sample(source: Examples, examples: int) -> Any:
    count = min(examples, len(source))
    return source.gather(np.random.default_rng(0).permutation(len(source))[:count])


def _listed(kind: type[Any], place: str, entries: Any) -> tuple[Any, ...]:
    return tuple(_entry(kind, place, entry) for entry in entries)


def _entry(kind: type[Any], place: str, entry: Any) -> Any:
    if not isinstance(entry, Mapping | ml_collections.ConfigDict):
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ValueError(f"{place}: {entry!r} must be a dict of some of {names}")
    return _make(kind, place, dict(entry))


def _make(kind: type[Any], place: str, fields: Mapping[str, Any], **others: Any) -> Any:
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
        return _make(hint, place, value)
    if not {hint, *typing.get_args(hint)}.isdisjoint({optax.GradientTransformation}):
        if isinstance(value, str):
            raise ValueError(f"{place}={value!r} is a group of fields: write {place}.name={value}")
        if isinstance(value, Mapping):
            return rule(value)
    return value


def _call(make: Callable[..., Any], place: str, arguments: Mapping[str, Any]) -> Any:
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
