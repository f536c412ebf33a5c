"""(k) Trials per second of a sweep: with one job on one core, two jobs, and one job on all cores.

XLA computes in one thread in all cases, but always compiles in several threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from pathlib import Path

from benchmarks.measure import Case, Measured, in_turn
from experiments.command_line import load_config
from experiments.sweep.plan import Plan
from experiments.sweep.pool import Pool, Process
from experiments.sweep.space import Space, log_uniform
from experiments.sweep.trial import Outcome

SPACES = {
    "configs/digits_downpour.py": "rule.gamma",
    "configs/speech_downpour_adagrad.py:smoke": "rule.gamma",
}
_UNTIL_S = 40.0  # virtual
_TRIALS = 3  # per job; learning rates differ, so each trial compiles its update


def plan_of(config_file: str, field: str) -> Plan:
    """A plan that varies one field of a config."""
    config = load_config(config_file)
    config.until_s = _UNTIL_S
    return Plan(config, Space({field: log_uniform(1e-3, 1e-1)}))


class Trials:
    """Runs new trials of a plan each time, in the same worker processes.

    Args:
      plan: the plan.
      jobs: the number of worker processes.
      cores: the numbers of the cores that they may use.
    """

    def __init__(self, plan: Plan, jobs: int, cores: set[int]) -> None:
        self._plan, self._jobs, self._cores = plan, jobs, cores
        self._pool = Pool(self._process, jobs)
        self._numbers = itertools.count()
        self.cpu_s: list[float] = []  # CPU seconds of each trial

    def _process(self) -> Process:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)  # which the process inherits
        try:
            return Process(Path(os.devnull))
        finally:
            os.sched_setaffinity(0, before)

    def rate(self) -> float:
        """Runs trials; returns trials per second."""
        begin, count = time.perf_counter(), _TRIALS * self._jobs
        waiting = [next(self._numbers) for _ in range(count)]
        while count:
            while waiting and self._pool.free:
                number = waiting.pop(0)
                self._pool.give(number, self._plan.job(self._plan.asked(number, ()).params))
            for number, said in self._pool.messages(1.0):
                if isinstance(said, Outcome):
                    if said.error:
                        raise RuntimeError(f"trial {number}: {said.error}")
                    self.cpu_s.append(said.cpu_s)
                    count -= 1
        return _TRIALS * self._jobs / (time.perf_counter() - begin)

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.__exit__()


def compare(config_file: str, field: str, rounds: int) -> Measured:
    """Compares numbers of jobs on a sweep over one field of a config."""
    plan, cores = plan_of(config_file, field), os.sched_getaffinity(0)
    made = {
        "1 job, on one core": Trials(plan, 1, {min(cores)}),
        "2 jobs": Trials(plan, 2, cores),
        "1 job": Trials(plan, 1, cores),
    }
    cases: dict[str, Case] = {name: trials.rate for name, trials in made.items()}
    try:
        measured = in_turn(
            f"(k) trials of a sweep, {config_file}, {plan.config.until_s:g} virtual s each",
            "trials/s",
            cases,
            rounds,
            {"2 jobs": ">= 1.8"},
        )
        cpu = {
            f"CPU s per trial, {k}": f"{statistics.median(t.cpu_s):.3g}" for k, t in made.items()
        }
        return dataclasses.replace(measured, notes=cpu)
    finally:
        for trials in made.values():
            trials.close()


def run(rounds: int) -> list[Measured]:
    """Measures part (k); see `benchmarks.run`."""
    return [compare(file, field, rounds) for file, field in SPACES.items()]
