"""Builds the library's types from a config; no other module knows both."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import dbjax
import dbjax.algorithms
import dbjax.optim
from dbjax.arguments import (
    require_at_least,
    require_positive,
    require_seed,
)
from dbjax.data import (
    IN_MEMORY,
    Examples,
    MostFrequent,
    Splits,
    load,
    require_options,
)
from dbjax.executors.setup import require_executor
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import Model, build, require_arguments
from dbjax.runtime.cluster import matches
from dbjax.runtime.ray import RayOptions
from dbjax.train import RuntimeName
from dbjax.types import Metrics, Params
from experiments import algorithms, construct
from experiments.defaults import require_whole

RUNTIMES = typing.get_args(RuntimeName)
_SEVERAL, _NODES = ("replica/{}", "shard/{}", "shard/{}/backup"), 10_000  # possible node names
_LISTED = (("failures", dbjax.Failure), ("outages", dbjax.Outage), ("links", dbjax.Link))


def cluster(config: ml_collections.ConfigDict) -> dbjax.Cluster | None:
    """Builds the modelled cluster; None if the runtime is real and needs no model.

    Raises:
      ValueError: a field of `cluster` is wrong.
    """
    if config.runtime != "virtual":
        return None
    fields = dict(config.cluster)
    machine = construct.make(dbjax.Machine, "cluster.machine", dict(fields.pop("machine")))
    machines = {
        pattern: construct.entry(dbjax.Machine, f"cluster.machines[{pattern!r}]", machine_fields)
        for pattern, machine_fields in dict(fields.pop("machines")).items()
    }
    listed = {
        name: construct.listed(kind, f"cluster.{name}", fields.pop(name)) for name, kind in _LISTED
    }
    _require_names(machines)
    given = {"machine": machine, "machines": machines, **listed}
    made: dbjax.Cluster = construct.make(dbjax.Cluster, "cluster", fields | given)
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
    require_executor(config.executor)
    _require_numbers(config)
    algorithms.algorithm(config)
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
    for name in ("devices", "processes"):
        require_at_least("", 1, **{f"sharding.{name}": config.sharding[name]})
    _require_processes(config)
    for name, seed in (("seed", config.seed), ("data_seed", config.data_seed)):
        if seed is not None:
            require_seed(name, seed)
    if config.until_s is not None:
        require_positive("until_s", config.until_s, "; or none, with options.steps")
    elif algorithms.algorithm(config).steps is None:
        raise ValueError("nothing would end this run: give until_s, or options.steps")
    _every(config)


def _require_processes(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if a replica's devices cannot be spread over `sharding.processes`."""
    devices, processes = config.sharding.devices, config.sharding.processes
    if processes > 1 and config.runtime != "ray":
        raise ValueError(
            f"sharding.processes={processes} needs runtime=ray, not {config.runtime}; or use 1"
        )
    if devices % processes:
        raise ValueError(
            f"sharding.processes={processes} must divide sharding.devices={devices}, since each "
            "process has equally many"
        )


def _every(config: ml_collections.ConfigDict) -> dbjax.Every:
    return dbjax.Every(config.checkpoint.every_s, config.checkpoint.every_updates)


def ray_options(config: ml_collections.ConfigDict) -> RayOptions | None:
    """Builds the options of the Ray runtime; None for another runtime.

    Raises:
      ValueError: a field of `ray` is wrong.
    """
    if config.runtime != "ray":
        return None
    made: RayOptions = construct.make(RayOptions, "ray", config.ray.to_dict())
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
        "executor": config.executor,
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
    on_gpus = config.runtime == "ray" and config.ray.replica_gpus > 0
    sharding = _sharding(config.sharding, network, on_gpus)
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


def _sharding(
    fields: ml_collections.ConfigDict, network: Model, on_gpus: bool
) -> ModelSharding | None:
    """The sharding of the network over `sharding.devices`; None for a single device.

    Args:
      fields: the group `sharding`.
      network: the network.
      on_gpus: whether replicas run on GPUs that this process need not see.

    Raises:
      ValueError: the network cannot be sharded that way, or there are too few devices.
    """
    if fields.devices == 1 and fields.how is None:
        return None
    sharding = network.sharding(fields.devices, fields.how)
    each, there_are = fields.devices // fields.processes, len(jax.local_devices())
    if there_are < each and not on_gpus:
        raise ValueError(
            f"sharding.devices={fields.devices} over sharding.processes={fields.processes}, but "
            f"JAX has {there_are}; on CPUs give --config.sharding.host_devices={each} or more"
        )
    if fields.devices == 1:
        return None
    return dataclasses.replace(sharding, processes=fields.processes)


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
