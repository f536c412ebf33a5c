"""(f) for the paper's network of 42 M parameters."""

from __future__ import annotations

from benchmarks.lbfgs import compare
from benchmarks.measure import Measured
from benchmarks.networks import paper


def run(rounds: int) -> list[Measured]:
    """Measures part (f) for the large network; see `benchmarks.run`."""
    return [compare(paper, 256, 15, max(2, rounds // 3))]
