"""The schema of a config: every field with its default. Unknown fields are errors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from dbjax.arguments import describe, fits, nearest

OPEN = {  # groups that hold arguments -> the field that names what takes those arguments
    "options": "algorithm",
    "rule": "rule.name",
    "data": "data.name",
    "model": "model.name",
}
RENAMED = {"cut": "sharding"}  # groups of fields by their former names
_FREE = {*OPEN, "cluster.machines"}  # groups that may have any field


def defaults() -> ml_collections.ConfigDict:
    """Returns a config with every field at its default.

    Times are in seconds of the run's clock and sizes in bytes. A placeholder is a field that is
    None by default and has the given type otherwise.
    """
    config = ml_collections.ConfigDict()
    config.algorithm = "downpour"  # a module of dbjax.algorithms
    config.options = ml_collections.ConfigDict()  # fields of its Config, except the rule
    # A function of dbjax.optim or optax, or a batch method such as lbfgs, and its arguments.
    config.rule = ml_collections.ConfigDict({"name": "sgd"})
    config.data = ml_collections.ConfigDict({"name": "synthetic"})  # a data set and its options
    config.data_dir = config_dict.placeholder(str)  # None: $DBJAX_DATA_DIR or a cache folder
    config.model = ml_collections.ConfigDict({"name": "softmax"})  # a network and its options
    config.sharding = ml_collections.ConfigDict(
        {
            "devices": 1,  # the number of devices that each replica's network is sharded over
            # units, alternating or tiles; None: the paper's choice for the model
            "how": config_dict.placeholder(str),
            "processes": 1,  # over which a replica's devices are spread, with runtime=ray
            # The number of JAX devices to make of the CPUs; None: JAX's default.
            "host_devices": config_dict.placeholder(int),
        }
    )
    config.batch_size = 32  # examples in a mini-batch, or in a portion
    config.runtime = "virtual"  # or threads, or ray
    config.ray = ml_collections.ConfigDict(  # fields of dbjax.runtime.ray.RayOptions
        {
            "address": "local",  # or auto, or HOST:PORT
            "cpus": 0.1,  # logical CPUs that each process requests
            "replica_cpus": config_dict.placeholder(float),  # None: the same as `cpus`
            "replica_gpus": 0.0,
            "timeout_s": 15.0,
            "hang_s": 30.0,  # how long a process may be silent until it is killed and restarted
            "wire_dtype": "float32",  # or bfloat16, of what replicas and shards send each other
        }
    )
    config.until_s = config_dict.placeholder(float)  # None: until all steps are done
    config.evaluations = 20  # the number of evaluations in a run with until_s
    config.evaluate_examples = 4_000  # evaluated examples of each: training and hold-out set
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_s": 60.0,  # None: not by time
            "every_updates": config_dict.placeholder(int),  # None: not by updates
            "keep": 3,  # the number of latest checkpoints to keep; 0: writes none
        }
    )
    # The seed of the initial parameters, of the algorithm, and of every part with no own seed.
    config.seed = 0
    config.data_seed = config_dict.placeholder(int)  # seed of the data's order; None: `seed`
    config.executor = "auto"  # or engine, or compiled: how the arithmetic of virtual time is done
    config.max_spans = 100_000  # the most spans to keep for the timeline
    config.event_log = config_dict.placeholder(bool)  # None: True unless time is virtual
    config.cluster = _cluster()
    return config


def _cluster() -> ml_collections.ConfigDict:
    """The modelled cluster: the fields of `dbjax.Cluster`."""
    return ml_collections.ConfigDict(
        {
            "compute_s": 0.1,  # or costs: estimated from the compiled program
            "latency_s": 0.0,
            "message_s": 0.0,
            "service_s": 0.0,
            "memory_bandwidth_bytes_per_s": float("inf"),
            "size_scale": 1.0,
            "seed": config_dict.placeholder(
                int
            ),  # seed of random durations and failures; None: the run's
            "machine": {
                "speed": 1.0,
                "law": "constant",
                "sigma": 0.0,
                "straggle_probability": 0.0,
                "straggle_factor": 1.0,
                "flops_per_s": float("inf"),
                "memory_bandwidth_bytes_per_s": float("inf"),
                "bandwidth_bytes_per_s": float("inf"),
                "cards": 1,
                "mean_time_between_failures_s": float("inf"),
                "mean_time_to_repair_s": float("inf"),
            },
            "machines": {},
            "failures": (),
            "outages": (),
            "links": (),
        }
    )


def renamed(path: str) -> str | None:
    """What a field is called now that had another name once; None if it had not."""
    group, dot, rest = path.partition(".")
    return f"{RENAMED[group]}{dot}{rest}" if group in RENAMED else None


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config to fields by full name, such as cluster.machine.speed."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


@functools.cache
def hints() -> Mapping[str, Any]:
    """The types of all fields, by full name."""
    config, found = defaults(), {}
    for name, value in flat(config.to_dict()).items():
        group, _, last = name.rpartition(".")
        place = functools.reduce(getattr, filter(None, group.split(".")), config)
        found[name] = place.get_type(last) if value is not None else place.get_type(last) | None
    return found | {
        "checkpoint.every_s": float | None,
        "cluster.compute_s": float | Literal["costs"],
    }


def require_whole(config: Any) -> None:
    """Raises ValueError unless a config has every field, with the right type, and no others."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"it is {config!r}, not an ml_collections.ConfigDict: start from "
            "experiments.defaults.defaults()"
        )
    if missing := list(_missing(config, defaults())):
        raise ValueError(
            f"the config lacks {', '.join(missing)}: start from experiments.defaults.defaults(), "
            "which has every field, and change some"
        )
    _require_known(config, defaults())


def _missing(
    config: ml_collections.ConfigDict, whole: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[str]:
    for name, value in whole.items():
        if name not in config:
            yield prefix + name
        elif isinstance(value, ml_collections.ConfigDict):
            if not isinstance(config[name], ml_collections.ConfigDict):
                raise ValueError(f"{prefix}{name}={config[name]!r} must be a group of fields")
            yield from _missing(config[name], value, f"{prefix}{name}.")


def _require_known(
    config: ml_collections.ConfigDict, whole: ml_collections.ConfigDict, prefix: str = ""
) -> None:
    for name, value in config.items():
        path = prefix + name
        hint = hints().get(path)
        if isinstance(value, ml_collections.ConfigDict) and name in whole:
            _require_known(value, whole[name], f"{path}.")
        elif hint is not None and not fits(value, hint):
            raise ValueError(f"{path}={value!r} must be {describe(hint)}")
        elif (now := renamed(path)) is not None:
            raise ValueError(f"the config's field {path!r} was renamed: use {now!r}")
        elif name not in whole and prefix.rstrip(".") not in _FREE:
            raise ValueError(f"the config has an unknown field {path!r}{nearest(name, whole)}")
