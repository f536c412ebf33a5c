"""The timing of a run in virtual time, without its arithmetic."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import numpy as np

from dbjax.arguments import require_seed
from dbjax.checkpoint import Every, checkpointer
from dbjax.costs.speedup import CompiledSteps
from dbjax.errors import one_line
from dbjax.monitoring.evaluator import EvaluationSchedule, card_utilisation, evaluator
from dbjax.monitoring.metrics import check_staleness_accounting
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import (
    AbstractBatch,
    AbstractLoss,
    ArithmeticRecorder,
    DependsOnValues,
)
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.trace import Row, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.runtime.virtual.simulator import rare_garbage_collection
from dbjax.schedules.recording import Recorded, recorded
from dbjax.schedules.schedule import Ints, Schedule
from dbjax.schedules.turns import Turns, rounded, turns_of
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_task, require_times

_BETWEEN = 1024  # pushes between two borders, at the most


class Look(NamedTuple):
    """What an observer sees of a run at one moment.

    Attributes:
      time_s: the moment, in seconds on the run's clock.
      rows: how many rows have been recorded before.
      versions: the version of each shard.
      reports: the reports of all shards; no pushes are refused in them.
      busy: how long network cards have been busy, see `card_utilisation`.
      states: the states of the shards, for a checkpoint; None: nobody asked for them.
    """

    time_s: float
    rows: int
    versions: tuple[int, ...]
    reports: list[Report]
    busy: Row
    states: list[Any] | None = None


class Border(NamedTuple):
    """A moment at which every shard must have exactly its version.

    Attributes:
      time_s: the moment, in seconds on the run's clock.
      versions: the version of each shard.
      look: what an observer sees then; None: nobody looks.
    """

    time_s: float
    versions: tuple[int, ...]
    look: Look | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Timing:
    """Everything about a run but its arithmetic.

    Attributes:
      recorded: the recorded arithmetic.
      rows: the rows that replicas recorded and those of failures, in order. A "loss" is the index
        of its gradient in the schedule.
      spans: the trace with the spans.
      borders: moments in order, the last one is the end.
      program: the program that ran.
    """

    recorded: Recorded
    rows: list[Row]
    spans: Trace
    borders: list[Border]
    program: Program

    @property
    def schedule(self) -> Schedule:
        """The schedule."""
        return self.recorded.schedule

    @property
    def end(self) -> Look:
        """What an observer sees at the end."""
        look = self.borders[-1].look
        assert look is not None
        return look

    def turns(self) -> Turns:
        """Orders the arithmetic."""
        found = turns_of(self.schedule, [border.versions for border in self.borders])
        held = zip(self.end.versions, self.end.reports, found.ring, strict=True)
        ring = tuple(
            max(size, rounded(version - _held(report) + 2)) for version, report, size in held
        )
        return dataclasses.replace(found, ring=ring)

    def with_border(self, versions: tuple[int, ...], time_s: float) -> tuple[Timing, int]:
        """Returns the same timing with another border, after others at the same moment.

        Returns:
          The timing, and the number of the new border.

        Raises:
          ValueError: shards never had these versions at that moment.
        """
        *others, end = self.borders
        before = [b for b in others if (b.time_s, sum(b.versions)) <= (time_s, sum(versions))]
        after = [*others[len(before) :], end]
        ascends = all(np.all(np.less_equal(b.versions, versions)) for b in before[-1:])
        if not ascends or np.any(np.less(after[0].versions, versions)):
            raise ValueError(f"the shards do not have the versions {versions} at {time_s:g} s")
        borders = [*before, Border(time_s, versions), *after]
        return dataclasses.replace(self, borders=borders), len(before)


@final
class _AbstractStream:
    """Stands for the `Stream` of a replica, of which only the places of mini-batches are needed."""

    def __init__(self, batch_size: int, replica: int, replicas: int) -> None:
        self.batch_size, self.replica, self.replicas = batch_size, replica, replicas

    def at(self, step: int) -> AbstractBatch:
        """Returns the mini-batch of the given step."""
        return AbstractBatch(self.replica, self.replicas, step)


class AbstractTask(Task):
    """A task whose parameters and mini-batches have no values."""

    @classmethod
    def of(cls, task: Task) -> AbstractTask:
        """Returns the abstract task of a task."""
        return cls(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})

    def start(self) -> Params:
        return self.shapes

    def batches(self, replica: int, replicas: int) -> Any:
        super().batches(replica, replicas)  # raises an error if there is too little data
        return _AbstractStream(self.batch_size, replica, replicas)


@rare_garbage_collection(1_000_000)  # none of them holds an array
def time_run(
    task: Task,
    config: Any,
    cluster: Cluster | None,
    *,
    until_s: float,
    evaluations: EvaluationSchedule,
    seed: int,
    max_spans: int = 0,
    checkpoint_every: Every | None = None,
    started: Callable[[VirtualRuntime], object] = lambda runtime: None,
) -> Timing:
    """Runs an algorithm on a virtual cluster without arithmetic.

    Args:
      task: the task, with a seed.
      config: the Config of the algorithm.
      cluster: the cluster; None: `Cluster()`.
      until_s: when to end, in seconds on the run's clock; may be infinite.
      evaluations: when the run is evaluated.
      seed: the seed of the algorithm, and of the cluster if it has none.
      max_spans: the largest number of spans to collect.
      checkpoint_every: how often checkpoints are taken; None: only at the end.
      started: is called with the runtime before it runs, so that the run may be stopped.

    Raises:
      DependsOnValues: the timing depends on values, or the program computes with parameters in a
        way of its own; the message says why.
    """
    recorder, trace = ArithmeticRecorder(), Trace(max_spans=max_spans)
    runtime = VirtualRuntime(cluster, seed=seed, trace=trace, recorder=recorder)
    runtime.simulator.ends_itself = getattr(config, "steps", None) is not None
    looks = list[Look]()

    def look(time_s: float, fetched: Fetched, reports: list[Report]) -> None:
        busy = card_utilisation(runtime)
        looks.append(Look(time_s, len(trace.rows), fetched.versions, reports, busy))

    def take(time_s: float, states: list[Any]) -> None:
        versions = tuple(map(len, recorder.updates))
        looks.append(Look(time_s, len(trace.rows), versions, [], {}, states))

    with unless_recordable():
        program: Program = algorithm_of(config).program(runtime, AbstractTask.of(task), config)
        runtime.observe("evaluator", evaluator, program, evaluations, look)
        if checkpoint_every not in (None, Every()):
            every = checkpoint_every
            runtime.observe("checkpointer", checkpointer, runtime, program, every, take)
        started(runtime)
        end_s, busy = runtime.run(until_s), card_utilisation(runtime)
    runtime.revive()
    versions = program.server.fetch(program.shard.peek).result().versions
    reports = program.server.broadcast(program.shard.report).result()
    check_staleness_accounting(reports)
    states = program.server.broadcast(program.shard.checkpoint).result()
    looks.append(Look(end_s, len(trace.rows), versions, reports, busy, states))
    found = recorded(recorder, versions, task.batch_size)
    rows = [_with_index(row, found.indices) for row in trace.rows]
    return Timing(found, rows, trace, _borders(found.schedule, looks), program)


def _held(report: Report) -> int:
    """Returns the oldest version that a replica has fetched last, and may still use."""
    return min(report.staleness.fetched_last(), default=report.version)


def cluster_for(cluster: Cluster, task: Task) -> Cluster:
    """Completes a cluster with what depends on the task.

    A replica gets as many machines as the task is sharded over, and `compute_s="costs"` becomes
    the function that computes the costs.
    """
    if task.sharding:
        cluster = dataclasses.replace(cluster, replica_machines=task.sharding.devices)
    if cluster.compute_s == "costs":
        cluster = dataclasses.replace(cluster, compute_s=CompiledSteps())
    return cluster


def schedule(
    task: Task,
    config: Any,
    cluster: Cluster | None = None,
    *,
    until_s: float | None = None,
    seed: int = 0,
) -> Schedule:
    """Returns the timing of a run in virtual time, whose arithmetic is not done.

    Args:
      task: the task; only shapes and the number of examples are used.
      config: the Config of the algorithm.
      cluster: the cluster; None: `Cluster()`.
      until_s: when the run ends, in seconds on its clock; None: when every replica has taken its
        steps.
      seed: the seed of the run.

    Raises:
      ValueError: nothing would end the run, or its timing depends on values.
    """
    require_task(task)
    algorithm_of(config)
    require_times(config, until_s)
    seed = require_seed("seed", seed)
    until_s = math.inf if until_s is None else until_s
    try:
        found = time_run(
            task.seeded(seed),
            config,
            cluster and cluster_for(cluster, task),
            until_s=until_s,
            evaluations=EvaluationSchedule(math.inf, until_s, 1),
            seed=seed,
        )
    except DependsOnValues as error:
        raise ValueError(f"no schedule can be made of this run: {error}") from error
    return found.schedule


@contextlib.contextmanager
def unless_recordable() -> Iterator[None]:
    """Turns every error in the block into `DependsOnValues`.

    An error of the program itself comes again on the engine.
    """
    try:
        yield
    except Exception as error:
        raise _reason(error) from error


def _reason(error: BaseException) -> DependsOnValues:
    """Returns why the timing of a program cannot be found without its arithmetic."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DependsOnValues):
            return cause
        cause = cause.__cause__
    return DependsOnValues(f"its arithmetic cannot be recorded: {one_line(error)}")


def _with_index(row: Row, index: Ints) -> Row:
    loss = row.get("loss")
    return row | {"loss": int(index[loss.gradient])} if isinstance(loss, AbstractLoss) else row


def _borders(schedule: Schedule, looks: list[Look]) -> list[Border]:
    """Returns the borders of these looks, and others in between where there are many pushes."""
    times = [np.sort(column[~np.isnan(column)]) for column in schedule.time_s.T]
    found = [Border(look.time_s, look.versions, look) for look in looks]
    end = found.pop()
    for time_s in np.unique(times[0][_BETWEEN::_BETWEEN]):
        versions = [int(np.searchsorted(of_shard, time_s, "right")) for of_shard in times]
        found.append(Border(float(time_s), tuple(versions)))
    found.sort(key=lambda border: (border.time_s, sum(border.versions)))
    return [*found, end]
