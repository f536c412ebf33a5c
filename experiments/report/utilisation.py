"""Utilisation: the share of time in which replicas, shards and network cards were busy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dbjax.parameter_server.replication import ReplicatedService
from dbjax.runtime.node_names import NodeKind, kind_of, service_name
from dbjax.runtime.trace import Row
from experiments.report.read import Numbers, Run, Spans

BINS = 100
BUSIEST = "the busiest network card"
_WAYS = {"sends": "sending", "receives": "receiving"}
# Calls between the two copies of a shard. Their spans do not tell which copy did the work.
BETWEEN_COPIES = tuple(
    method.__name__
    for method in (
        ReplicatedService.follow,
        ReplicatedService.install,
        ReplicatedService.peer_recovering,
        ReplicatedService.present,
        ReplicatedService.watch,
    )
)


@dataclasses.dataclass(frozen=True)
class Busy:
    """How busy one kind of resource was, as shares of time between 0 and 1.

    Attributes:
      name: the kind of resource, as the page shows it.
      shares: the share of each node over the whole run; for network cards only one, the mean.
      times_s: the midpoints of the intervals that `over_time` refers to, in seconds: equal parts
        of the run, or, for network cards, the times between evaluations.
      over_time: the mean share over the nodes in each interval; NaN where it is unknown.
    """

    name: str
    shares: tuple[float, ...]
    times_s: tuple[float, ...]
    over_time: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of `shares`."""
        return sum(self.shares) / len(self.shares)


def extent(run: Run) -> tuple[float, float]:
    """Returns the first and last time that the run's spans cover, in seconds of its clock."""
    spans = run.spans
    if not len(spans):
        return 0.0, 0.0
    begin_s, end_s = float(spans.start_s.min()), run.end_s
    return begin_s, min(end_s, float(spans.start_s.max())) if spans.dropped else end_s


def nodes(run: Run) -> list[Busy]:
    """Returns the utilisation of replicas and of shards, computed from their spans."""
    spans = run.spans
    between = np.isin(spans.kind, [i for i, k in enumerate(spans.kinds) if k in BETWEEN_COPIES])
    computing = np.isin(spans.kind, [i for i, k in enumerate(spans.kinds) if k == "compute"])
    found = [
        _of("replicas: computing gradients", NodeKind.REPLICA, computing, run),
        _of("shards: serving calls", NodeKind.SHARD, ~between, run),
    ]
    return [one for one in found if one is not None]


def _of(name: str, kind: NodeKind, chosen: Numbers, run: Run) -> Busy | None:
    spans, (begin_s, end_s) = run.spans, extent(run)
    members: dict[str, list[int]] = {}  # a shard and its backup count as one
    for i, node in enumerate(spans.nodes):
        if kind_of(service_name(node)) is kind:
            members.setdefault(service_name(node), []).append(i)
    if not members or not end_s > begin_s:
        return None
    edges_s = np.linspace(begin_s, end_s, BINS + 1)
    until_s = np.array(
        [busy_until(spans, chosen & np.isin(spans.node, i), edges_s) for i in members.values()]
    )
    over_time = np.diff(until_s, axis=1).mean(axis=0) / (edges_s[1] - edges_s[0])
    middles_s = (edges_s[1:] + edges_s[:-1]) / 2
    shares = (until_s[:, -1] - until_s[:, 0]) / (end_s - begin_s)
    return Busy(name, tuple(shares.tolist()), tuple(middles_s.tolist()), tuple(over_time.tolist()))


def busy_until(spans: Spans, chosen: Numbers, times_s: Numbers) -> Numbers:
    """Returns for how long at least one of the chosen spans was active, up to each of the times.

    Args:
      spans: the spans, sorted by start.
      chosen: a mask over the spans.
      times_s: increasing times, in seconds.

    Returns:
      Seconds, as many as `times_s`. Overlapping spans count once.
    """
    start_s, end_s = spans.start_s[chosen], np.maximum.accumulate(spans.end_s[chosen])
    if not len(start_s):
        return np.zeros_like(times_s)
    # Spans that begin while no other one is active.
    begins = np.flatnonzero(np.append(True, start_s[1:] > end_s[:-1]))
    first_s, last_s = start_s[begins], end_s[np.append(begins[1:] - 1, len(end_s) - 1)]
    done_s = np.cumsum(last_s - first_s)
    moments_s = np.stack([first_s, last_s], 1).ravel()
    found: Numbers = np.interp(
        times_s, moments_s, np.stack([done_s - (last_s - first_s), done_s], 1).ravel()
    )
    return found


def cards(rows: Sequence[Row]) -> list[Busy]:
    """Returns the utilisation of network cards, between successive evaluations.

    Args:
      rows: the evaluations. Without "cards_busy_s", as where cards take no time, nothing is
        returned.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.get("cards_busy_s", ())))
    times_s = np.array([row["time_s"] for row in rows])
    found = []
    for name in names:
        busy_s = np.array([row.get("cards_busy_s", {}).get(name, 0.0) for row in rows])
        gone_s, more_s = np.diff(times_s), np.diff(busy_s)
        known = (gone_s > 0) & (more_s >= 0)  # a decrease means that the run was resumed
        over_time = np.where(known, more_s / np.where(known, gone_s, 1.0), np.nan)
        total = float(np.nansum(over_time * gone_s) / max(gone_s[known].sum(), 1e-300))
        middles_s = (times_s[1:] + times_s[:-1]) / 2
        found.append(
            Busy(
                _said(name),
                (total,),
                tuple(middles_s.tolist()),
                tuple(over_time.tolist()),
            )
        )
    return found


def _said(name: str) -> str:
    node, _, way = name.partition(" ")
    kind = "shard backups" if node == "shard/backup" else f"{node}s"
    return f"cards of {kind}: {_WAYS[way]}" if way else BUSIEST
