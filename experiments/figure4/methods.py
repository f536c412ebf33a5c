"""The curves of Figures 4 and 5: their names, their looks, their machines."""

from __future__ import annotations

import dataclasses

import ml_collections

from configs._figure4 import MACHINES, servers
from experiments.command_line import load_config

CORES = 20  # of a machine, at most (section 5)


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      key: of its config in configs/figure4.
      space: of what is tuned of it, in configs/spaces/figure4.
      name: in pictures, where `plots.METHODS` gives it a colour.
      line: likewise.
    """

    key: str
    space: str
    name: str
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
        return MACHINES * replicas + (0 if self.key == "sgd" else servers(replicas))


METHODS = {
    method.key: method
    for method in (
        Method("sgd", "sgd", "SGD"),
        Method("gpu", "sgd", "GPU"),
        Method("downpour", "downpour", "Downpour"),
        Method("downpour_adagrad", "downpour_adagrad", "Downpour + Adagrad", "--"),
        Method("downpour_adagrad_200", "downpour_adagrad", "Downpour + Adagrad"),
        Method("sandblaster", "sandblaster", "Sandblaster L-BFGS"),
    )
}


def replicas_of(config: ml_collections.ConfigDict) -> int:
    return int(config.options.replicas)
