"""Evaluates the parameters at regular times, by an observer that does not perturb the cluster."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dbjax.arguments import short_repr
from dbjax.errors import best_effort
from dbjax.monitoring.health import warn_of_problems
from dbjax.monitoring.metrics import RESERVED, progress, train_loss
from dbjax.parameter_server import Fetched, Report
from dbjax.program import Program
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.trace import Row, Trace
from dbjax.task import Task
from dbjax.types import Metrics, Params


@dataclasses.dataclass
class EvaluationSchedule:
    """When a run is evaluated. Nothing else depends on it, so it is not part of the program.

    Attributes:
      every_s: the time between evaluations, in seconds on the run's clock; may be infinite.
      until_s: when the run ends, in seconds on its clock; may be infinite.
      first: the number of the first evaluation; above 0 in a resumed run.
    """

    every_s: float
    until_s: float
    first: int = dataclasses.field(compare=False)


def schedule(every_s: float, until_s: float, rows: Sequence[Row]) -> EvaluationSchedule:
    """Makes the schedule of a run whose trace already has these rows, if it is a resumed one."""
    times = (row["time_s"] for row in reversed(rows) if row["node"] == "evaluator")
    last_s = next(times, None)
    first = 0 if last_s is None else math.floor(last_s / every_s * (1 + 1e-9)) + 1
    return EvaluationSchedule(every_s, until_s, first)


async def evaluator(
    node: Node,
    program: Program,
    schedule: EvaluationSchedule,
    evaluate: Callable[[float, Fetched, list[Report]], Row | None],
) -> None:
    """Evaluates at the times k * `every_s` that are before the end; `run` evaluates at the end.

    This is an observer (`Runtime.observe`).

    Args:
      node: the node of the observer.
      program: the program that runs.
      schedule: when to evaluate.
      evaluate: is called with the time, the parameters and the reports of all shards; returns the
        row to record, or None.
    """
    every_s, until_s = schedule.every_s, schedule.until_s
    k = node.saved_progress()
    if k is None:
        k = schedule.first
    while k == 0 or (k * every_s < until_s and not math.isclose(k * every_s, until_s)):
        node.save_progress(k)
        await node.sleep(max(0.0, k * every_s - node.now()) if k else 0.0)
        fetched = await program.server.fetch(program.shard.peek)
        reports = await program.server.broadcast(program.shard.report)
        row = evaluate(node.now(), fetched, reports)
        if row is not None:
            node.record(**row)
        k = max(k + 1, math.ceil(node.now() / every_s))


def evaluation_row(
    program: Program,
    task: Task,
    trace: Trace,
    busy: Row,
    time_s: float,
    fetched: Fetched,
    reports: list[Report],
) -> Row:
    """Returns the row of an evaluation, with warnings of what has gone wrong; skips what fails.

    Args:
      program: the program that runs.
      task: the task that it trains.
      trace: the trace of the run.
      busy: how long network cards have been busy, see `card_utilisation`.
      time_s: the time on the run's clock, in seconds.
      fetched: the parameters to evaluate.
      reports: the reports of all shards.
    """
    found = counted(program, trace, reports)
    with best_effort(f"the evaluation at {time_s:.4g} s"):
        found = evaluation(program, task, trace, fetched, reports)
    news = warn_of_problems(program, trace, time_s, reports)
    return {**found, **busy, **news}


def evaluation(
    program: Program, task: Task, trace: Trace, fetched: Fetched, reports: list[Report]
) -> Row:
    """Returns the row of an evaluation: progress, and what `Task.evaluate` returns.

    Args:
      program: the program that runs.
      task: the task that it trains.
      trace: the trace of the run, for the latest losses.
      fetched: the parameters to evaluate.
      reports: the reports of all shards.

    Raises:
      ValueError: `Task.evaluate` does not return named numbers.
    """
    theirs = metrics(task.evaluate, program.join(fetched.slices)) if task.evaluate else {}
    return counted(program, trace, reports) | theirs


def counted(program: Program, trace: Trace, reports: list[Report]) -> Row:
    """Returns the part of an evaluation's row that does not need `Task.evaluate`.

    This is the progress of the run, and the mean of its latest training losses.
    """
    return progress(reports) | {"train_loss": train_loss(trace.rows, program.recent_losses)}


def metrics(evaluate: Callable[[Params], Metrics], params: Params) -> Row:
    """Calls a task's `evaluate` and checks what it returns.

    Raises:
      ValueError: it is not a dict of real numbers, or has a name that dbjax reserves for metrics
        of its own.
    """
    found = evaluate(params)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"Task.evaluate returned {short_repr(found)}; it must return a dict of numbers"
        )
    ours = sorted(name for name in found if name in RESERVED)
    if ours:
        raise ValueError(
            f"Task.evaluate returns {', '.join(map(repr, ours))}, which dbjax records itself: use "
            f"another name, such as {'my_' + ours[0]!r}"
        )
    return {name: _number(name, value) for name, value in found.items()}


def _number(name: Any, value: Any) -> float:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"Task.evaluate returns a number called {name!r}; names are strings")
    array = np.asarray(value)
    if array.size != 1 or not (
        jnp.issubdtype(array.dtype, np.floating) or array.dtype.kind in "biu"
    ):
        raise ValueError(f"Task.evaluate: {name}={short_repr(value)} must be one real number")
    return float(array.reshape(()))


def card_utilisation(runtime: Runtime) -> Row:
    """Returns how long network cards have been busy, as an entry of a row.

    The row is empty where the runtime does not model them.
    """
    busy_s = runtime.cards_busy_s()
    return {"cards_busy_s": busy_s} if busy_s else {}
