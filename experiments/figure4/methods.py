"""The six curves of Figure 4: a name, a config, and what it is called in the picture."""

from __future__ import annotations

import dataclasses

import ml_collections

from configs._figure4 import MACHINES
from experiments.command_line import load_config


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, on one size of the figure.

    Attributes:
      key: of its config file in configs/figure4, and of its space in configs/spaces/figure4.
      label: in figures: the method and its number of replicas.
      config: as it was tuned.
      machines: of all replicas, and of the parameter server if there is one.
    """

    key: str
    label: str
    config: ml_collections.ConfigDict
    machines: int


NAMES = {
    "sgd": "SGD",
    "gpu": "GPU",
    "downpour": "Downpour",
    "downpour_adagrad": "Downpour + Adagrad",
    "downpour_adagrad_200": "Downpour + Adagrad",
    "sandblaster": "Sandblaster L-BFGS",
}


def method(key: str, size: str) -> Method:
    config = load_config(f"configs/figure4/{key}.py:{size}")
    return named(key, config)


def named(key: str, config: ml_collections.ConfigDict) -> Method:
    replicas = dict(config.options).get("replicas", 1)
    machines = 1 if key == "gpu" else MACHINES * replicas * (1 if key == "sgd" else 2)
    return Method(key, f"{NAMES[key]} [{replicas}]", config, machines)


def seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """With its own initial parameters, order of the data, and delays; no two seeds are the same."""
    found = config.copy_and_resolve_references()
    found.seed, found.data_seed, found.cluster.seed = seed, 100 + seed, 200 + seed
    return found
