"""(a) for the paper's network of 42 M parameters."""

from __future__ import annotations

from benchmarks.measure import Measured
from benchmarks.networks import paper
from benchmarks.threads import compare


def run(rounds: int) -> list[Measured]:
    """Measures part (a) for the large network; see `benchmarks.run`."""
    return [compare(paper(), ">= 0.85", max(3, rounds // 2))]
