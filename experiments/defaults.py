"""Every field of a config, with its default. A config that sets another is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from dbjax.arguments import describe, fits, nearest

OPEN = {  # group of arguments -> the field that says whose; such a group may have any
    "options": "algorithm",
    "rule": "rule.name",
    "data": "data.name",
    "model": "model.name",
}
RENAMED = {"cut": "sharding"}  # groups of fields by their former names
_FREE = {*OPEN, "cluster.machines"}  # groups that may have any field


def defaults() -> ml_collections.ConfigDict:
    """The schema. Times in seconds of the run's clock, sizes in bytes."""
    config = ml_collections.ConfigDict()
    config.algorithm = "downpour"  # a module of dbjax.algorithms
    config.options = ml_collections.ConfigDict()  # fields of its Config, but for the rule
    config.rule = ml_collections.ConfigDict({"name": "sgd"})  # of dbjax.optim or optax; or lbfgs
    config.data = ml_collections.ConfigDict({"name": "synthetic"})  # and its options
    config.data_dir = config_dict.placeholder(str)  # None: $DBJAX_DATA_DIR or a cache folder
    config.model = ml_collections.ConfigDict({"name": "softmax"})  # and its options
    config.sharding = ml_collections.ConfigDict(
        {
            "devices": 1,  # that each replica's network is cut over
            "how": config_dict.placeholder(str),  # units, alternating, tiles; None: the paper's
            "host_devices": config_dict.placeholder(int),  # CPU devices to make; None: as they are
        }
    )
    config.batch_size = 32  # examples in a mini-batch, or in a portion
    config.runtime = "virtual"  # or threads, or ray
    config.ray = ml_collections.ConfigDict(  # fields of dbjax.runtime.ray.RayOptions
        {
            "address": "local",  # or auto, or HOST:PORT
            "cpus": 0.1,  # logical ones, that each process asks for
            "replica_cpus": config_dict.placeholder(float),  # None: as the others
            "replica_gpus": 0.0,
            "timeout_s": 15.0,
        }
    )
    config.until_s = config_dict.placeholder(float)  # None: until all steps are done
    config.evaluations = 20  # in a run with until_s
    config.evaluate_examples = 4_000  # of the training set, and of the hold-out set
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_s": 60.0,  # of the run's clock
            "every_updates": config_dict.placeholder(int),
            "keep": 3,  # of the latest ones; 0: none are written
        }
    )
    config.seed = 0  # of the initial parameters and of algorithms, and of what has none of its own
    config.data_seed = config_dict.placeholder(int)  # of the order of the data; None: as seed
    config.max_spans = 100_000  # kept for the timeline
    config.event_log = config_dict.placeholder(bool)  # None: unless time is virtual
    config.cluster = _cluster()
    return config


def _cluster() -> ml_collections.ConfigDict:
    """The modelled one: fields of `dbjax.Cluster`."""
    return ml_collections.ConfigDict(
        {
            "compute_s": 0.1,  # or costs: of the compiled program
            "latency_s": 0.0,
            "message_s": 0.0,
            "service_s": 0.0,
            "memory_bandwidth_bytes_per_s": float("inf"),
            "size_scale": 1.0,
            "seed": config_dict.placeholder(int),  # of all that is drawn; None: as the run's
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
    """Fields by their whole names, such as cluster.machine.speed."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


@functools.cache
def hints() -> Mapping[str, Any]:
    """Fields by their whole names, and what each may be."""
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
    """Raises ValueError unless a config has every field, of its type, and no other."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"it is {config!r}, no ml_collections.ConfigDict: begin with "
            "experiments.defaults.defaults()"
        )
    if missing := list(_missing(config, defaults())):
        raise ValueError(
            f"the config lacks {', '.join(missing)}: begin with experiments.defaults.defaults(), "
            "which has every field, and set what differs"
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
            raise ValueError(
                f"the config has a field {path!r} that is unknown{nearest(name, whole)}"
            )
