"""Warns when a run goes wrong: once for each kind, in one line with numbers, in log and summary.

Evaluations and the end of a run check data that the driver has anyway: the losses that replicas
recorded, and the reports of the shards. The checks never wait for a device, and no number of the
training depends on them. A warning begins with its kind, such as "diverged: ".
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dbjax.monitoring.metrics import recent_losses
from dbjax.optim.inputs import is_function
from dbjax.parameter_server.shard import Report
from dbjax.program import Program
from dbjax.runtime.node_names import backup_name, replica_name
from dbjax.runtime.trace import Row, Trace
from dbjax.task import Task
from dbjax.types import Params

_LOG = logging.getLogger("dbjax")
_SAYING = threading.RLock()
# Divergence is exponential, so a diverging run soon exceeds even a bound that no ordinary run comes
# near. A run may begin with almost no loss, such as at a solution: its losses are compared to 1.
_TIMES_THE_FIRST = 1e3
_TOO_LARGE = math.sqrt(float(np.finfo(np.float32).max))  # the largest whose square float32 holds
_EVERY = 1_000  # losses between two checks, where there is no evaluation
_SETTLED = 512  # by this many rows later, the trace has turned jax's scalars into numbers
_LONG = 0.1  # the fraction of a run for which a machine must have been down at its end
_NAMED = 3  # how many nodes a warning names


class FinishedRun(NamedTuple):
    """A run that has ended.

    Attributes:
      task: the task that was trained.
      of_task: the warnings about the task, from before the run.
      program: the program that ran.
      replicas: the number of replicas.
      shard_backups: the number of backups of each shard.
      until_s: when the run was to end, in seconds on its clock; may be infinite.
      params: the final parameters.
      summary: the summary of the run, still without warnings.
    """

    task: Task
    of_task: list[str]
    program: Program
    replicas: int
    shard_backups: int
    until_s: float
    params: Params
    summary: Row


def kind(warning: str) -> str:
    """Returns the kind of a warning, such as "diverged"; a run logs each kind once."""
    return warning.partition(":")[0]


def warn_of_problems(
    program: Program, trace: Trace, time_s: float, reports: Sequence[Report]
) -> Row:
    """Logs what has gone wrong so far.

    Args:
      program: the program that runs.
      trace: the trace of the run.
      time_s: the time on the run's clock, in seconds.
      reports: the reports of all shards.

    Returns:
      The entry of this evaluation's row: the warnings of kinds that no earlier evaluation had.
    """
    losses = recent_losses(reversed(trace.rows), program.recent_losses)
    lost = sum(report.counts.lost for report in reports)
    wrong = [*_diverged(losses, trace.rows, time_s), *_refused(reports)]
    found = [*(wrong or _not_finite(losses, time_s)), *_lost(lost)]
    if not found:
        return {}
    log_warnings(trace, time_s, found)
    before = _by_kind(_in_rows(trace.rows, "evaluator"))
    new = [warning for warning in found if kind(warning) not in before]
    return {"warnings": new} if new else {}


def final_warnings(finished: FinishedRun, trace: Trace, reports: Sequence[Report]) -> list[str]:
    """Returns all warnings of a run for its summary, and logs those that are new."""
    last = [
        *finished.of_task,
        *_refused(reports),  # there may be more than at the last evaluation
        *_lost(finished.summary["lost_pushes"]),
        *_overflowed(finished.params),
        *([] if finished.summary["interrupted"] else _of_a_whole_run(finished, trace.rows)),
    ]
    log_warnings(trace, finished.summary["time_s"], last)
    return list((_by_kind(_in_rows(trace.rows, "evaluator")) | _by_kind(last)).values())


@contextlib.contextmanager
def watching_losses(trace: Trace, recent: int) -> Iterator[None]:
    """Makes divergence be noticed during the block even if there is no evaluation for long.

    Args:
      trace: the trace of the run.
      recent: how many of the latest losses are checked, after every 1,000 losses.
    """
    heard = itertools.count(1)

    def listen(row: Row) -> None:
        if "loss" in row and next(heard) % _EVERY == 0:
            rows = itertools.islice(reversed(trace.rows), _SETTLED, None)
            losses = recent_losses(rows, recent)
            log_warnings(trace, row["time_s"], _diverged(losses, trace.rows, row["time_s"]))

    with trace.listening(listen):
        yield


def log_warnings(trace: Trace, time_s: float, warnings: Iterable[str]) -> None:
    """Logs the warnings of kinds that this run has not logged, nor had before it was resumed.

    The rows of the node "run" record what was logged; a checkpoint includes them.
    """
    with _SAYING:
        for warning in warnings:
            if kind(warning) not in _by_kind(_in_rows(trace.rows, "run")):
                trace.record("run", time_s, {"warnings": [warning]})
                _LOG.warning("%s", warning)


def _in_rows(rows: Iterable[Row], node: str) -> Iterator[str]:
    return itertools.chain.from_iterable(
        row["warnings"] for row in rows if "warnings" in row and row["node"] == node
    )


def _by_kind(warnings: Iterable[str]) -> dict[str, str]:
    return {kind(warning): warning for warning in warnings}


def _diverged(losses: Sequence[float], rows: Sequence[Row], time_s: float) -> Iterator[str]:
    """Warns if more than half of the latest losses are not finite, or far above the first one."""
    if not losses:
        return
    first = float(next(row["loss"] for row in rows if "loss" in row))
    limit = _TIMES_THE_FIRST * (max(1.0, abs(first)) if math.isfinite(first) else 1.0)
    beyond = sum(not -math.inf < loss <= limit for loss in losses)
    if 2 * beyond > len(losses):
        yield (
            f"diverged: by {time_s:.4g} s, {beyond} of the last {len(losses)} training losses are "
            f"not finite or above {limit:,.4g}; the first was {first:.4g}, the latest "
            f"{losses[0]:.4g}"
        )


def _not_finite(losses: Sequence[float], time_s: float) -> Iterator[str]:
    not_finite = sum(not math.isfinite(loss) for loss in losses)
    if not_finite:
        yield (
            f"losses not finite: by {time_s:.4g} s, {not_finite} of the last {len(losses)} "
            "training losses, so their mean, train_loss, is not finite either"
        )


def _refused(reports: Sequence[Report]) -> Iterator[str]:
    refused = sum(report.counts.refused for report in reports)
    if refused:
        pushes = sum(report.version for report in reports)
        each = f", as {len(reports)} shards count them," if len(reports) > 1 else ""
        yield (
            f"refused pushes: {refused:,} of {pushes:,} pushes{each} had a gradient that was not "
            "finite, so they were not applied"
        )


def _lost(count: int) -> Iterator[str]:
    if count:
        yield (
            f"lost pushes: {count:,} acknowledged pushes were lost with shards that failed "
            "(shard_backups=1 keeps them)"
        )


def _overflowed(params: Params) -> Iterator[str]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    beyond = sum(np.count_nonzero(~(np.abs(_wide(leaf)) <= _TOO_LARGE)) for leaf in leaves)
    if beyond:
        yield (
            f"overflowed parameters: {beyond:,} of {sum(leaf.size for leaf in leaves):,} are not "
            f"finite, or above {_TOO_LARGE:.2g}, where squares overflow"
        )


def _wide(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Converts to at least float32, which can represent the bound."""
    return values if values.dtype.itemsize >= 4 else values.astype(np.float32)


def _of_a_whole_run(finished: FinishedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Warns of problems that show only when a run has come to its end."""
    updates, time_s = finished.summary["updates"], finished.summary["time_s"]
    if not updates:
        yield f"no update: the parameters are the initial ones after {time_s:.4g} s"
    elif _unchanged(finished.task.params, finished.params):
        yield (
            f"unchanged parameters: {updates:,} updates left every one as it was; is the rate of "
            "the rule 0?"
        )
    yield from _idle(finished.replicas, rows)
    yield from _dead(finished, rows)
    yield from _guessing(finished)


def _unchanged(before: Params, after: Params) -> bool:
    """Returns whether no parameter has changed; False if a function made the initial ones.

    It is not worth calling that function again.
    """
    if is_function(before):
        return False
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=False)
    return all(np.array_equal(np.asarray(b, a.dtype), np.asarray(a)) for b, a in pairs)


def _idle(replicas: int, rows: Iterable[Row]) -> Iterator[str]:
    """Warns of replicas that took no step, if replicas record their own losses."""
    active = {row["node"] for row in rows if "loss" in row}
    names = [replica_name(r) for r in range(replicas)]
    idle = [name for name in names if name not in active]
    if 0 < len(idle) < replicas:
        more = ", ..." if len(idle) > _NAMED else ""
        yield (
            f"idle replicas: {len(idle):,} of {replicas:,} took no step "
            f"({', '.join(idle[:_NAMED])}{more})"
        )


def _dead(finished: FinishedRun, rows: Iterable[Row]) -> Iterator[str]:
    """Warns if all replicas, all copies of a shard, or the coordinator were down at the end.

    It ignores nodes that failed just before the end of the run, unless their failure ended it.
    """
    last = {row["node"]: row for row in rows if "event" in row}
    died_s = {name: row["time_s"] for name, row in last.items() if row["event"] == "died"}
    shards = [shard.name for shard in finished.program.server.shards]
    groups = {
        **{s: [s, backup_name(s)] if finished.shard_backups else [s] for s in shards},
        "all replicas": [replica_name(r) for r in range(finished.replicas)],
        "the coordinator": ["coordinator"],
    }
    end_s, dead = finished.summary["time_s"], []
    for who, names in groups.items():
        since_s = max(died_s.get(name, math.inf) for name in names)
        if since_s < end_s - _LONG * end_s or (since_s < math.inf and end_s < finished.until_s):
            dead.append(f"{who} (since {since_s:.4g} s)")
    if dead:
        yield f"dead at the end: {', '.join(dead)}; the run ended at {end_s:.4g} s"


def _guessing(finished: FinishedRun) -> Iterator[str]:
    guess = finished.task.most_frequent
    accuracy = finished.summary.get(guess.metric, math.nan) if guess is not None else math.nan
    if guess is not None and guess.explains(accuracy):
        yield f"no better than a guess: {guess.metric} is {accuracy:.1%}, {guess.message}"
