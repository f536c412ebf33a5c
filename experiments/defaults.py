"""Every field of a config, with its default. A config that sets another is refused."""

from __future__ import annotations

from typing import Any

import ml_collections
from ml_collections import config_dict


def defaults() -> ml_collections.ConfigDict:
    """The schema. Times in seconds of the run's clock, sizes in bytes."""
    config = ml_collections.ConfigDict()
    config.algorithm = "downpour"  # a module of dbjax.algorithms
    config.options = ml_collections.ConfigDict()  # fields of its Config, but for the rule
    config.rule = ml_collections.ConfigDict({"name": "sgd"})  # of dbjax.optim or optax; or lbfgs
    config.data = ml_collections.ConfigDict({"name": "synthetic"})  # and its options
    config.data_dir = config_dict.placeholder(str)  # None: $DBJAX_DATA_DIR or a cache folder
    config.model = ml_collections.ConfigDict({"name": "softmax"})  # and its options
    config.cut = ml_collections.ConfigDict(
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
    config.seed = 0  # of the initial parameters and of algorithms
    config.data_seed = 0  # of the order of the data
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
            "seed": 0,
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


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by their whole names, such as cluster.machine.speed."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found
