"""The timing of a run in virtual time, without its arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from dbjax.errors import one_line
from dbjax.monitoring.evaluator import EvaluationSchedule, card_utilisation, evaluator
from dbjax.monitoring.metrics import check_staleness_accounting
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import AbstractLoss, ArithmeticRecorder, DependsOnValues
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.trace import Row, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.runtime.virtual.simulator import rare_garbage_collection
from dbjax.schedules.recording import schedule_of
from dbjax.schedules.schedule import Ints, Schedule
from dbjax.schedules.turns import Turns, turns_of
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of

_BETWEEN = 1024  # pushes between two borders, at the most


class Look(NamedTuple):
    """What an observer sees of a run at one moment.

    Attributes:
      time_s: the moment, in seconds on the run's clock.
      rows: how many rows have been recorded before.
      versions: the version of each shard.
      reports: the reports of all shards; no pushes are refused in them.
      busy: how long network cards have been busy, see `card_utilisation`.
    """

    time_s: float
    rows: int
    versions: tuple[int, ...]
    reports: list[Report]
    busy: Row


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
      schedule: the schedule.
      rows: the rows that replicas recorded and those of failures, in order. A "loss" is the index
        of its gradient in the schedule.
      spans: the trace with the spans.
      borders: moments in order, the last one is the end.
      program: the program that ran.
    """

    schedule: Schedule
    rows: list[Row]
    spans: Trace
    borders: list[Border]
    program: Program

    @property
    def end(self) -> Look:
        """What an observer sees at the end."""
        look = self.borders[-1].look
        assert look is not None
        return look

    def turns(self) -> Turns:
        """Orders the arithmetic."""
        return turns_of(self.schedule, [border.versions for border in self.borders])


@final
class _StepNumbers:
    """Stands for the mini-batches of a replica, of which only the number is needed."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def at(self, step: int) -> int:
        """Returns the number of the step."""
        return step


class _AbstractTask(Task):
    """A task whose parameters and mini-batches have no values."""

    def start(self) -> Params:
        return self.shapes

    def batches(self, replica: int, replicas: int) -> Any:
        super().batches(replica, replicas)  # raises an error if there is too little data
        return _StepNumbers(self.batch_size)


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
      started: is called with the runtime before it runs, so that the run may be stopped.

    Raises:
      DependsOnValues: the timing depends on values, or the program computes with parameters in a
        way of its own; the message says why.
    """
    recorder, trace = ArithmeticRecorder(), Trace(max_spans=max_spans)
    runtime = VirtualRuntime(cluster, seed=seed, trace=trace, recorder=recorder)
    runtime.simulator.ends_itself = getattr(config, "steps", None) is not None
    abstract = _AbstractTask(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})
    looks = list[Look]()

    def look(time_s: float, fetched: Fetched, reports: list[Report]) -> None:
        busy = card_utilisation(runtime)
        looks.append(Look(time_s, len(trace.rows), fetched.versions, reports, busy))

    try:
        program: Program = algorithm_of(config).program(runtime, abstract, config)
        runtime.observe("evaluator", evaluator, program, evaluations, look)
        started(runtime)
        end_s, busy = runtime.run(until_s), card_utilisation(runtime)
    except Exception as error:  # an error of the program itself comes again on the engine
        raise _reason(error) from error
    runtime.revive()
    versions = program.server.fetch(program.shard.peek).result().versions
    reports = program.server.broadcast(program.shard.report).result()
    check_staleness_accounting(reports)
    if versions != tuple(map(len, recorder.updates)):
        raise DependsOnValues("a shard goes back to a checkpoint")
    looks.append(Look(end_s, len(trace.rows), versions, reports, busy))
    schedule, index = schedule_of(recorder)
    rows = [_with_index(row, index) for row in trace.rows]
    return Timing(schedule, rows, trace, _borders(schedule, looks), program)


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
