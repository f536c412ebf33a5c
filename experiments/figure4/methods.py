"""The methods of Figures 4 and 5: their configs, names, line styles and machines."""

from __future__ import annotations

import dataclasses

import ml_collections

from configs._figure4 import MACHINES, servers
from experiments.command_line import load_config

CORES = 20  # upper bound on the cores of a machine (section 5 of the paper)


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of the figures.

    Attributes:
      key: the name of its config in configs/figure4.
      space: the name of its search space in configs/spaces/figure4.
      name: its name in the figures; `plots.METHODS` assigns a colour and a marker to it.
      line: its line style in Figure 4.
    """

    key: str
    space: str
    name: str
    line: str = "-"

    def config(self, size: str) -> ml_collections.ConfigDict:
        """Returns the tuned config for a size, a key of `configs._figure4.SIZES`."""
        return load_config(f"configs/figure4/{self.key}.py:{size}")

    def label(self, replicas: int) -> str:
        """Returns the label of a curve as in the paper, such as "Downpour [20]"."""
        return f"{self.name} [{replicas}]"

    def machines(self, replicas: int) -> int:
        """Returns the number of machines of all replicas, and of the parameter server if any."""
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
    """Returns the number of replicas in a config."""
    return int(config.options.replicas)
