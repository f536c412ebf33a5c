"""(j) for the paper's network of 42 M parameters."""

from __future__ import annotations

from benchmarks import on_ray
from benchmarks.measure import Measured
from benchmarks.networks import paper


def run(rounds: int) -> list[Measured]:
    """Measures part (j) for the large network; see `benchmarks.run`."""
    return on_ray.run(max(3, rounds // 2), paper, ">= 1.0")
