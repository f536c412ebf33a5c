"""The curves of Figures 4 and 5: their names, their looks, their machines, their seeds."""

from __future__ import annotations

import dataclasses

import ml_collections

from configs._figure4 import MACHINES
from experiments.command_line import load_config

CORES = 20  # of a machine, at most (section 5)


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      key: of its config in configs/figure4.
      space: of what is tuned of it, in configs/spaces/figure4.
      name, colour, line: in pictures.
    """

    key: str
    space: str
    name: str
    colour: str
    line: str = "-"

    def config(self, size: str) -> ml_collections.ConfigDict:
        """As it was tuned."""
        return load_config(f"configs/figure4/{self.key}.py:{size}")

    def label(self, replicas: int) -> str:
        return f"{self.name} [{replicas}]"

    def machines(self, replicas: int) -> int:
        """Of all replicas, and of the parameter server if there is one."""
        if self.key == "gpu":
            return 1
        return MACHINES * replicas * (1 if self.key == "sgd" else 2)


METHODS = {
    method.key: method
    for method in (
        Method("sgd", "sgd", "SGD", "#444444"),
        Method("gpu", "sgd", "GPU", "#009e73"),
        Method("downpour", "downpour", "Downpour", "#0072b2"),
        Method("downpour_adagrad", "downpour_adagrad", "Downpour + Adagrad", "#d55e00", "--"),
        Method("downpour_adagrad_200", "downpour_adagrad", "Downpour + Adagrad", "#d55e00"),
        Method("sandblaster", "sandblaster", "Sandblaster L-BFGS", "#cc79a7"),
    )
}


def replicas_of(config: ml_collections.ConfigDict) -> int:
    return int(config.options.replicas)


def seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """With its own initial parameters, order of the data, and delays; none is that of tuning."""
    found = config.copy_and_resolve_references()
    found.seed, found.data_seed, found.cluster.seed = seed, 100 + seed, 200 + seed
    return found
