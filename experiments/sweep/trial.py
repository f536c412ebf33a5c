"""One trial, in a worker: a run for each of its seeds, without bulky files."""

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
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.trace import Row
from experiments import build

# Fields that nothing asks for in a trial, or that cannot change what comes of it.
UNUSED = frozenset(
    {"event_log", "max_spans", "checkpoint.keep", "data_dir", "sharding.host_devices"}
)
Look = Callable[[int, float], bool]  # number of the evaluation, value -> whether to stop


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is given.

    Attributes:
      config: of the trial's first run.
      metric: the value of a run is the last one of it.
      seeds: runs with other data orders and initial parameters.
      cluster_seeds: and with other delays, each of them for each of `seeds`.
      prunes: whether the first run is to wait for a verdict after each evaluation.
    """

    config: ml_collections.ConfigDict
    metric: str
    seeds: int
    cluster_seeds: int
    prunes: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What comes of it.

    Attributes:
      values: of each run; what a pruned one had reached.
      error: one line; empty: there was none.
      warnings: kinds of what went wrong in any run, such as "diverged".
      files: what its folder is to hold.
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
        return statistics.fmean(self.values)

    def leave(self, folder: Path) -> None:
        """Puts the files into a folder, all of them or none."""
        part = folder.with_name(f".{folder.name}")
        for path in (folder, part):
            shutil.rmtree(path, ignore_errors=True)
        for name, text in self.files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(part / name, text)
        if self.files:
            part.rename(folder)


def run_trial(job: Job, look: Look) -> Outcome:
    """Runs a trial; whatever goes wrong is part of the outcome.

    Args:
      look: is shown every evaluation of the first run, and says whether to stop.
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
        method = build.algorithm(job.config)  # the same for all seeds: compiled once
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
    """The runs of a trial, and the folders of each."""
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
    """One run."""
    build.make_host_devices(config)
    task, arguments = build.task(config), build.run_arguments(config)
    stops: list[Callable[[], None]] = []
    evaluated = itertools.count()

    async def background(node: Node, runtime: Runtime) -> None:
        stops.append(runtime.stop)

    def listen(row: Row) -> None:
        if row["node"] != "evaluator":
            return
        k = next(evaluated)
        known = metric in row  # else that evaluation failed
        if stops and 0 < k < config.evaluations and known and look(k, row[metric]):
            stops.pop()()

    with RunWriter(folder, config.to_dict(), clock=build.clock(config)) as files:
        result = dbjax.run(
            task,
            method,
            **arguments,
            background=background,
            trace=dbjax.Trace(listeners=[files.listen, listen]),
        )
        files.summarise(result)
    return result
