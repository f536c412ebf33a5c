"""(f) L-BFGS in one process, compared with other libraries' on the same batch with the same m."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.measure import Measured, peak_memory_gb
from benchmarks.networks import Network, small
from benchmarks.solvers import (
    MEMORY,
    Solved,
    Solver,
    evaluating,
    problem,
    with_dbjax,
    with_four_portions,
    with_optax,
    with_sandblaster,
    with_scipy,
    with_torch,
)

# The first case is the baseline.
CASES: dict[str, Solver] = {
    "optax.lbfgs, jitted, donated": with_optax,
    "dbjax.optim.minimise": with_dbjax,
    "Sandblaster, threads, 1 replica": with_sandblaster,
    "Sandblaster, threads, 4 portions": with_four_portions,
    "scipy L-BFGS-B": with_scipy,
    "torch.optim.LBFGS": with_torch,
    "loss and gradient alone": evaluating,
}
AIMS = {"dbjax.optim.minimise": "<= 1.1", "Sandblaster, threads, 1 replica": "<= 1.1"}
_NEEDS = {"torch.optim.LBFGS": "torch", "scipy L-BFGS-B": "scipy"}


class Alone(NamedTuple):
    """The measurements of a solver's second run in a process of its own.

    Attributes:
      ms_per_evaluation: milliseconds of the whole run per evaluation.
      solved: the result of the run.
      peak_memory_gb: the peak memory of the process, in GB.
    """

    ms_per_evaluation: float
    solved: Solved
    peak_memory_gb: float


def compare(make: Callable[[], Network], batch_size: int, iterations: int, rounds: int) -> Measured:
    """Measures milliseconds per evaluation, including the other work of an iteration.

    Every number is measured in a process of its own: in one process, the solvers with 42 M
    parameters would need more memory than there is, and would compete for threads.

    Args:
      make: makes the network.
      batch_size: the number of examples in the batch.
      iterations: the number of L-BFGS iterations.
      rounds: the number of times to measure each case.
    """
    names = [n for n in CASES if n not in _NEEDS or importlib.util.find_spec(_NEEDS[n])]
    measured: dict[str, list[Alone]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in measured.items():
            found.append(_in_a_process(name, make, batch_size, iterations))
    return Measured(
        f"(f) L-BFGS, m = {MEMORY}, {make().name}, batch {batch_size}",
        "ms/evaluation",
        {name: [one.ms_per_evaluation for one in found] for name, found in measured.items()},
        AIMS,
        {name: _described(found[-1]) for name, found in measured.items()},
    )


def _described(alone: Alone) -> str:
    iterations, evaluations, loss = alone.solved
    counts = f"{evaluations} evaluations in {iterations} iterations, to a loss of {loss:.4f}"
    return f"{counts}; peak memory {alone.peak_memory_gb:.2f} GB"


def _in_a_process(
    name: str, make: Callable[[], Network], batch_size: int, iterations: int
) -> Alone:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as processes:
        return processes.submit(_alone, name, make, batch_size, iterations).result()


def _alone(name: str, make: Callable[[], Network], batch_size: int, iterations: int) -> Alone:
    solve = CASES[name](problem(make(), batch_size, iterations))
    solve()  # compiles, and touches memory for the first time
    begin = time.perf_counter()
    solved = solve()
    took_ms = 1e3 * (time.perf_counter() - begin)
    return Alone(took_ms / solved.evaluations, solved, peak_memory_gb())


def run(rounds: int) -> list[Measured]:
    """Measures part (f); see `benchmarks.run`."""
    return [compare(small, 4096, 30, rounds)]
