"""The metrics of a run, computed from the shards' reports and the rows of the trace."""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from dbjax.checkpoint.encoding import bytes_of
from dbjax.parameter_server.shard import Report
from dbjax.program import Program
from dbjax.runtime.trace import Row, Trace
from dbjax.types import Params

# The names that dbjax uses itself: in the rows of a trace (all rows, evaluations, steps, failures,
# iterations of Sandblaster), in summaries (all, Sandblaster's) and in summary.json. A user's metric
# of the same name would replace dbjax's own.
RESERVED = frozenset({
    "time_s", "node",
    "updates", "examples", "version_skew_updates", "bytes_fetched", "bytes_pushed", "train_loss",
    "cards_busy_s",
    "step", "loss", "event", "victim",
    "gradient_norm", "step_length", "stop", "evaluations", "evaluating_s", "commanding_s",
    "portions", "calls", "backups_started", "backups_won", "replicas_lost", "rewinds",
    "round_trips", "bytes_sent", "bytes_received",
    "staleness_updates", "replica_devices", "refused_pushes", "repeated_pushes", "lost_pushes",
    "deaths", "returns", "clock", "executor", "wall_s", "interrupted", "params_sha256",
    "iterations", "stopped_because", "backups", "coordinator", "phases_s",
    "staleness_histogram", "config", "versions", "warnings", "most_frequent_class",
})  # fmt: skip


def staleness_histogram(reports: Sequence[Report]) -> dict[int, int]:
    """Counts the pushes at each staleness, over all shards.

    Returns:
      The number of pushes by staleness in updates, sorted by staleness.
    """
    total: collections.Counter[int] = collections.Counter()
    for report in reports:
        total.update(report.staleness.histogram)
        total.update(report.staleness.earlier)
    return dict(sorted(total.items()))


def staleness(reports: Sequence[Report], predicted_mean: float | None) -> Row:
    """Summarises the staleness of all pushes that all shards applied.

    Args:
      reports: the reports of all shards.
      predicted_mean: the predicted mean, in updates; it is returned with the measured numbers.

    Returns:
      The mean, the 50th and 95th percentiles and the maximum, in updates.
    """
    histogram = staleness_histogram(reports)
    if not histogram:
        return {"mean": 0.0, "p50": 0, "p95": 0, "max": 0, "predicted_mean": predicted_mean}
    values, times = np.array(list(histogram)), np.array(list(histogram.values()))
    share = np.cumsum(times) / times.sum()
    return {
        "mean": float(values @ times / times.sum()),
        "p50": int(values[np.searchsorted(share, 0.5)]),
        "p95": int(values[np.searchsorted(share, 0.95)]),
        "max": int(values[-1]),
        "predicted_mean": predicted_mean,
    }


def progress(reports: Sequence[Report]) -> Row:
    """Measures how far a run has come.

    Returns:
      The updates and the examples of the shard that has the fewest; by how many updates the
      versions of the shards differ; and the bytes fetched from and pushed to all shards.
    """
    versions = [report.version for report in reports]
    return {
        "updates": min(report.counts.applied for report in reports),
        "examples": min(report.counts.examples for report in reports),
        "version_skew_updates": max(versions) - min(versions),
        "bytes_fetched": sum(report.counts.bytes_fetched for report in reports),
        "bytes_pushed": sum(report.counts.bytes_pushed for report in reports),
    }


def recent_losses(rows: Iterable[Row], recent: int) -> list[float]:
    """Returns the first losses in these rows, at most `recent` of them."""
    return [float(row["loss"]) for row in itertools.islice(filter(_has_loss, rows), recent)]


def _has_loss(row: Row) -> bool:
    return "loss" in row


def train_loss(rows: Sequence[Row], recent: int) -> float:
    """Returns the mean of the last `recent` losses that replicas recorded; NaN if there are none.

    Each loss was computed with the parameters that its replica held at that step.
    """
    values = recent_losses(reversed(rows), recent)
    return sum(values) / len(values) if values else math.nan


def lost_pushes(reports: Sequence[Report], acknowledged: Mapping[str, int]) -> int:
    """Counts the pushes that shards had acknowledged and then lost.

    Args:
      reports: the reports of all shards, which count the lost pushes that were followed by others.
      acknowledged: the number of acknowledged pushes of each replica, which also shows losses at
        the end of the run.
    """
    return sum(report.counts.lost for report in reports) + sum(
        max(0, pushes - report.pushed.get(replica, 0))
        for report in reports
        for replica, pushes in acknowledged.items()
    )


def summarise(
    trace: Trace, reports: Sequence[Report], program: Program, resumed_rows: int = 0
) -> Row:
    """Makes the summary of a run, without the entries about its clock and its configuration.

    Args:
      trace: the trace of the run, whose last evaluation is part of the summary.
      reports: the reports of all shards.
      program: the program that ran.
      resumed_rows: the number of rows that belong to the earlier run. They do not count as
        acknowledgements, since this run may have been resumed from before the last of them.
    """
    evaluations = [row for row in trace.rows if row["node"] == "evaluator"]
    skews = [row["version_skew_updates"] for row in evaluations]
    deaths = [row["event"] for row in trace.rows if "event" in row]
    devices = program.server.replica_devices()
    return evaluations[-1] | {
        "train_loss": train_loss(trace.rows, program.recent_losses),
        "staleness_updates": staleness(reports, program.predicted_staleness_updates),
        "version_skew_updates": {"final": skews[-1], "max": max(skews)},
        **({"replica_devices": devices} if devices else {}),
        "refused_pushes": sum(report.counts.refused for report in reports),
        "repeated_pushes": sum(report.counts.repeated for report in reports),
        "lost_pushes": lost_pushes(reports, program.acknowledged(trace.rows[resumed_rows:])),
        "deaths": deaths.count("died"),
        "returns": deaths.count("returned"),
        **program.summarise(trace.rows),
    }


def check_staleness_accounting(reports: Sequence[Report]) -> None:
    """Checks the sum-of-delays identity of every shard (proof 6, `parameter_server.staleness`).

    Raises:
      RuntimeError: the identity does not hold, so an update was counted twice or not at all.
    """
    for index, report in enumerate(reports):
        measured, exact = report.staleness.balance()
        if measured != exact:
            raise RuntimeError(
                f"shard/{index}: delays sum to {measured}, not {exact}: an update is missing in "
                "the accounts, or is counted twice"
            )


def params_sha256(params: Params) -> str:
    """Computes the SHA-256 digest of every leaf's path, dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{values.dtype}{values.shape}".encode())
        digest.update(bytes_of(values))
    return digest.hexdigest()
