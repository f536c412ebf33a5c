"""The points of Figure 5: four numbers of replicas per method, and the GPU."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from configs._figure4 import DEFAULT, with_replicas
from dbjax.models import PAPER
from experiments.accuracy import guessing, time_to
from experiments.figure4.methods import CORES, METHODS, Method, replicas_of
from experiments.report.read import Run

_CURVES = ("downpour", "downpour_adagrad", "sandblaster")
REPLICAS = {  # size -> four numbers of replicas for each of _CURVES
    "smoke": ((1, 2, 4, 12), (1, 2, 4, 12), (5, 10, 20, 40)),
    "laptop": ((5, 20, 50, 200), (5, 20, 50, 200), (94, 250, 1_000, 2_000)),  # 94: 30,000 cores
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One configuration of one method.

    Attributes:
      curve: the curve that the point belongs to, a key of `METHODS`.
      replicas: the number of replicas.
      machines: the number of machines of all replicas and of the parameter server.
      times_s: the time to the accuracy for each seed, in virtual seconds; infinite for a missed
        deadline.
      guessing: descriptions of its runs, and those of SGD [1], that learned nothing
        (`accuracy.guessing`).
    """

    curve: str
    replicas: int
    machines: int
    times_s: tuple[float, ...]
    guessing: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """The method of the curve."""
        return METHODS[self.curve]

    @property
    def cores(self) -> int:
        """An upper bound on the number of cores."""
        return CORES * self.machines

    @property
    def time_s(self) -> float:
        """The median time over seeds, in virtual seconds."""
        return statistics.median(self.times_s)


def configs(size: str) -> dict[tuple[str, int], tuple[str, ml_collections.ConfigDict]]:
    """Returns the configs of all points, and of SGD [1].

    Numbers of replicas that were not tuned use the tuned config of the same method with the nearest
    number.

    Args:
      size: a key of `configs._figure4.SIZES`.

    Returns:
      (curve, replicas) -> (key of the tuned method, config).
    """
    found = {}
    for key in ("gpu", "sgd"):
        found[key, 1] = key, METHODS[key].config(size)
    for curve, counts in zip(_CURVES, REPLICAS.get(size, REPLICAS[DEFAULT]), strict=True):
        tuned = {
            key: method.config(size)
            for key, method in METHODS.items()
            if method.name == METHODS[curve].name
        }
        for count in counts:
            key = min(tuned, key=lambda k: _ratio(replicas_of(tuned[k]), count))
            config = tuned[key].copy_and_resolve_references()
            with_replicas(config, count)
            found[curve, count] = key, config
    return found


def _ratio(one: int, other: int) -> float:
    return max(one, other) / min(one, other)


def points(runs: Mapping[tuple[str, int], Sequence[Run]], accuracy: float) -> list[Point]:
    """Returns the point of each configuration: when its runs reach `accuracy`, that of SGD [1]."""
    sgd = guessing(METHODS["sgd"].label(1), runs.get(("sgd", 1), ()))
    return [
        Point(
            curve,
            replicas,
            METHODS[curve].machines(replicas),
            tuple(time_to(run.rows, accuracy) for run in mine),
            (*sgd, *guessing(METHODS[curve].label(replicas), mine)),
        )
        for (curve, replicas), mine in runs.items()
        if curve != "sgd"
    ]


def rows(
    found: Sequence[Point], accuracy: float, deadline_s: float, computed: int
) -> list[dict[str, Any]]:
    """Returns the rows of the CSV file, one per seed of each configuration.

    Args:
      found: the points.
      accuracy: the hold-out accuracy that they refer to.
      deadline_s: the virtual time at which runs end.
      computed: the number of parameters of the network whose gradients are computed.
    """
    return [
        {
            "method": point.method.name,
            "replicas": point.replicas,
            "machines": point.machines,
            "cores": point.cores,
            "clock_of_parameters": PAPER.parameters,
            "computed_parameters": computed,
            "seed": seed,
            "hold_out_accuracy": accuracy,
            "time_s": time_s,
            "deadline_s": deadline_s,
        }
        for point in found
        for seed, time_s in enumerate(point.times_s, start=1)
    ]
