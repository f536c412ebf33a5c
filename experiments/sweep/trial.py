"""One trial, as a worker runs it: one run per seed, without large output files."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

import dbjax
from dbjax.files import write_text
from dbjax.monitoring import health
from dbjax.run_dir import RunWriter
from dbjax.runtime.trace import Row
from experiments import algorithms, build

# Fields that a trial does not read, or that cannot change its outcome.
UNUSED = frozenset(
    {"event_log", "executor", "max_spans", "checkpoint.keep", "data_dir", "sharding.host_devices"}
)
Look = Callable[[int, float], bool]  # (number of the evaluation, value) -> whether to stop


@dataclasses.dataclass(frozen=True)
class Job:
    """The description of a trial that is sent to a worker.

    Attributes:
      config: the config of the trial's first run.
      metric: the metric whose last value is the value of a run.
      seeds: the number of runs with different data orders and initial parameters.
      cluster_seeds: the number of runs with different delays, for each of `seeds`.
      prunes: whether the first run waits for a verdict after each evaluation.
    """

    config: ml_collections.ConfigDict
    metric: str
    seeds: int
    cluster_seeds: int
    prunes: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
      values: the value of each run; for a pruned run, the value that it had reached.
      pruned: whether the trial was stopped early.
      error: a one-line error message; empty if there was no error.
      warnings: the kinds of warnings of all runs, such as "diverged".
      files: relative path -> text, the files to write into the trial's folder.
      wall_s: the duration, in seconds of the wall clock.
      cpu_s: the processor time of the worker, in seconds.
    """

    values: tuple[float, ...] = ()
    pruned: bool = False
    error: str = ""
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def value(self) -> float:
        """The mean over the runs."""
        return statistics.fmean(self.values)

    def leave(self, folder: Path) -> None:
        """Writes the files to `folder`, replacing what is there: either all files or none."""
        part = folder.with_name(f".{folder.name}")
        for path in (folder, part):
            shutil.rmtree(path, ignore_errors=True)
        for name, text in self.files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(part / name, text)
        if self.files:
            part.rename(folder)


def run_trial(job: Job, look: Look) -> Outcome:
    """Runs a trial. Errors do not propagate; they become part of the outcome.

    Args:
      job: the trial.
      look: is called with the number and value of every evaluation of the first run, and returns
        whether to stop the trial.
    """
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = _found(job, look, Path(folder))
        files = {
            str(path.relative_to(folder)): path.read_text()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    return dataclasses.replace(found, files=files, wall_s=wall_s, cpu_s=cpu_s)


def _found(job: Job, look: Look, folder: Path) -> Outcome:
    values: list[float] = []
    warnings: dict[str, None] = {}
    pruned = False

    def once(k: int, value: float) -> bool:
        nonlocal pruned
        pruned = look(k, value)
        return pruned

    try:
        method = algorithms.algorithm(
            job.config
        )  # shared by all seeds, so that it is compiled once
        for name, config in _runs(job):
            first = not values
            shown = once if first else _unseen
            result = _run(config, method, job.metric, folder / name, shown)
            values.append(float(result.evaluations[-1][job.metric]))
            warnings |= dict.fromkeys(map(health.kind, result.summary["warnings"]))
            if pruned:
                break
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Outcome(error=" ".join(f"{kind}{error}".split()))
    if not all(map(math.isfinite, values)):
        return Outcome(error=f"{job.metric} is {values[-1]} at the end", warnings=tuple(warnings))
    return Outcome(tuple(values), pruned, warnings=tuple(warnings))


def _unseen(k: int, value: float) -> bool:
    return False


def _runs(job: Job) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
    """Yields the folder and the config of each run of a trial."""
    first = job.config
    first_cluster = first.seed if first.cluster.seed is None else first.cluster.seed
    for k in range(job.seeds * job.cluster_seeds):
        config = first.copy_and_resolve_references()
        seed, cluster_seed = divmod(k, job.cluster_seeds)
        config.seed += seed
        if first.data_seed is not None:
            config.data_seed += seed
        config.cluster.seed = first_cluster + cluster_seed  # the same for each of `seeds`
        yield f"run_{k}" if job.seeds * job.cluster_seeds > 1 else "", config


def _run(
    config: ml_collections.ConfigDict, method: Any, metric: str, folder: Path, look: Look
) -> dbjax.Result:
    """Makes one run, and writes its metrics and summary to `folder`."""
    build.make_host_devices(config)
    task, arguments = build.task(config), build.run_arguments(config)
    trace, evaluated, ended = dbjax.Trace(), itertools.count(), False

    def listen(row: Row) -> None:
        nonlocal ended
        if row["node"] != "evaluator" or ended:
            return
        k = next(evaluated)
        known = metric in row  # it is missing if the evaluation failed
        if 0 < k < config.evaluations and known and look(k, row[metric]):
            ended = True
            trace.stop()

    with RunWriter(folder, config.to_dict(), clock=build.clock(config)) as files:
        trace.listeners += [files.listen, listen]
        result = dbjax.run(task, method, **arguments, trace=trace)
        files.summarise(result)
    return result
