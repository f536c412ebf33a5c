"""The checked arguments of a run, and its result, which all executors share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, get_args

from dbjax.checkpoint import Checkpoints, Every
from dbjax.errors import best_effort
from dbjax.monitoring.evaluator import evaluation
from dbjax.monitoring.health import FinishedRun, final_warnings, warn_of_problems
from dbjax.monitoring.metrics import (
    params_sha256,
    progress,
    staleness_histogram,
    summarise,
    train_loss,
)
from dbjax.parameter_server import Fetched, Report
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.ray import RayOptions
from dbjax.runtime.trace import Row, Trace
from dbjax.task import Task
from dbjax.types import Params

BackgroundFn = Callable[[Node, Runtime], Coroutine[Any, Any, None]]
RuntimeName = Literal["virtual", "threads", "ray"]
Executor = Literal["auto", "engine", "compiled"]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      params: the final parameters, as the shards hold them, with the structure of `Task.params`.
      summary: one number or small table for each name, as in summary.json.
      trace: the rows of metrics, and the spans.
      staleness_histogram: the number of pushes at each staleness, which is measured in updates,
        over all shards.
    """

    params: Params
    summary: Row
    trace: Trace
    staleness_histogram: dict[int, int]

    @property
    def evaluations(self) -> list[Row]:
        """The rows of the trace that evaluations recorded, in order of time."""
        return [row for row in self.trace.rows if row["node"] == "evaluator"]


class Setup(NamedTuple):
    """The arguments of `dbjax.run`, checked and completed.

    Attributes:
      task_warnings: what is wrong with the task.
    """

    task: Task
    config: Any
    runtime: str
    cluster: Cluster | None
    until_s: float
    evaluate_every_s: float
    checkpoint_every: Every | None
    checkpoints: Checkpoints | None
    background: BackgroundFn | None
    seed: int
    trace: Trace
    log: EventLog | None
    ray: RayOptions | None
    task_warnings: list[str]


class Ended(NamedTuple):
    """A run that has ended, before its last evaluation.

    Attributes:
      program: the program that ran.
      clock: "virtual" or "wall".
      time_s: when it ended, in seconds on its clock.
      wall_s: how long it took, in seconds of the wall clock.
      busy: how long network cards have been busy, see `card_utilisation`.
      interrupted: "SIGINT" or "SIGTERM" if that ended it; None: nothing did.
      final: the final parameters.
      reports: the final reports of all shards.
      executor: who did the arithmetic, and why.
      resumed_rows: the number of rows in the trace that belong to the earlier run, if this run was
        resumed from the shards' states only.
    """

    program: Program
    clock: str
    time_s: float
    wall_s: float
    busy: Row
    interrupted: str | None
    final: Fetched
    reports: list[Report]
    executor: Row
    resumed_rows: int = 0


def require_executor(executor: str) -> None:
    """Raises ValueError unless there is such an executor."""
    if executor not in get_args(Executor):
        raise ValueError(f"executor={executor!r} is neither 'auto' nor 'engine' nor 'compiled'")


def cannot_compile(why: object) -> ValueError:
    """Returns the error of a run that was to be compiled and cannot be."""
    return ValueError(f"executor='compiled': {why}; use executor='auto'")


def finish(setup: Setup, ended: Ended) -> Result:
    """Evaluates the final parameters, and makes the summary of a run."""
    task, config, trace = setup.task, setup.config, setup.trace
    program, reports, time_s, final = ended.program, ended.reports, ended.time_s, ended.final
    params = program.join(final.slices)
    problems: Row = {}
    with best_effort("the check for problems of the run"):
        problems = warn_of_problems(program, trace, time_s, reports)
    last = progress(reports) | {"train_loss": train_loss(trace.rows, program.recent_losses)}
    with best_effort("the evaluation of the final parameters"):
        last = dict(evaluation(program, task, trace, final, reports))
    trace.record("evaluator", time_s, last | ended.busy | problems)
    digest = None
    with best_effort("params_sha256, the digest of the final parameters"):
        digest = params_sha256(params)
    summary = summarise(trace, reports, program, ended.resumed_rows) | {
        "clock": ended.clock,
        "executor": ended.executor,
        "time_s": time_s,
        "wall_s": ended.wall_s,
        "interrupted": ended.interrupted,
        "params_sha256": digest,
    }
    if task.most_frequent is not None:
        guess = task.most_frequent
        summary["most_frequent_class"] = {"share": guess.share, "examples": guess.examples}
    backups = getattr(config, "shard_backups", 0)
    finished = FinishedRun(
        task, setup.task_warnings, program, config.replicas, backups, setup.until_s, params, summary
    )
    summary["warnings"] = list[str]()
    with best_effort("warnings, the list of what went wrong in the run"):
        summary["warnings"] = final_warnings(finished, trace, reports)
    return Result(params, summary, trace, staleness_histogram(reports))
