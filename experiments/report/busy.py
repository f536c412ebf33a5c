"""How busy replicas, shards and network cards were."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dbjax.runtime.node_names import NodeKind, kind_of, service_name
from dbjax.runtime.trace import Row
from experiments.report.read import Numbers, Run, Spans

BINS = 100
BUSIEST = "the busiest network card"
_WAYS = {"sends": "sending", "receives": "receiving"}
# What the two copies of a shard say to each other: a span does not tell who asks and who serves.
BETWEEN_COPIES = ("follow", "watch", "install", "blank", "present")


@dataclasses.dataclass(frozen=True)
class Busy:
    """Of one kind of thing, as shares of time.

    Attributes:
      shares: one for each node; of network cards the mean only.
      times_s: middles of equal, or of the evaluations', parts of the run.
      over_time: mean share over the nodes in each part; NaN: unknown.
    """

    name: str
    shares: tuple[float, ...]
    times_s: tuple[float, ...]
    over_time: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares)


def extent(run: Run) -> tuple[float, float]:
    """The part of the run that its spans cover, in seconds."""
    spans = run.spans
    if not len(spans):
        return 0.0, 0.0
    begin_s, end_s = float(spans.start_s.min()), run.end_s
    return begin_s, min(end_s, float(spans.start_s.max())) if spans.dropped else end_s


def nodes(run: Run) -> list[Busy]:
    """Replicas and shards."""
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
    members: dict[str, list[int]] = {}  # a shard, and the copy that takes its place
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
    """Seconds in which at least one of the chosen spans lasted, up to each moment."""
    start_s, end_s = spans.start_s[chosen], np.maximum.accumulate(spans.end_s[chosen])
    if not len(start_s):
        return np.zeros_like(times_s)
    begins = np.flatnonzero(np.append(True, start_s[1:] > end_s[:-1]))  # where nothing lasts on
    first_s, last_s = start_s[begins], end_s[np.append(begins[1:] - 1, len(end_s) - 1)]
    done_s = np.cumsum(last_s - first_s)
    moments_s = np.stack([first_s, last_s], 1).ravel()
    found: Numbers = np.interp(
        times_s, moments_s, np.stack([done_s - (last_s - first_s), done_s], 1).ravel()
    )
    return found


def cards(rows: Sequence[Row]) -> list[Busy]:
    """Network cards, from evaluation to evaluation; nothing where they took no time."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("cards_busy_s", ())))
    times_s = np.array([row["time_s"] for row in rows])
    found = []
    for name in names:
        busy_s = np.array([row.get("cards_busy_s", {}).get(name, 0.0) for row in rows])
        gone_s, more_s = np.diff(times_s), np.diff(busy_s)
        known = (gone_s > 0) & (more_s >= 0)  # less than before: a run that was taken up
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
    kind = "copies of shards" if node == "shard/backup" else f"{node}s"
    return f"cards of {kind}: {_WAYS[way]}" if way else BUSIEST
