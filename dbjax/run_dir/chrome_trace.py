"""Converts spans to the Chrome trace format, which Perfetto (ui.perfetto.dev) displays.

Every node is a process of the trace, with one track for each kind of work. Calls that a replica
makes to all shards at once appear as one span that ends with the last reply. Times are
microseconds of the run's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dbjax.runtime.node_names import NodeKind, kind_of, node_order, service_name
from dbjax.runtime.trace import Span

_MICROSECONDS = 1e6
_SERVED = {"push": "apply"}  # a shard that serves a push applies it


def merged(spans: Iterable[Span]) -> list[Span]:
    """Merges spans with equal node, kind and start into one that ends with the last of them.

    Returns:
      The merged spans, sorted by node, kind and start.
    """
    ends: dict[tuple[str, str, float], float] = {}
    for span in spans:
        shard = kind_of(service_name(span.node)) is NodeKind.SHARD
        kind = _SERVED.get(span.kind, span.kind) if shard else span.kind
        key = (span.node, kind, span.start_s)
        ends[key] = max(ends.get(key, span.end_s), span.end_s)
    found = [Span(node, kind, start, end) for (node, kind, start), end in ends.items()]
    return sorted(found, key=lambda s: (node_order(s.node), s.kind, s.start_s))


def chrome_trace(spans: Iterable[Span], *, clock: str, dropped: int) -> dict[str, Any]:
    """Returns the trace as a JSON object.

    Args:
      spans: the spans, in any order.
      clock: the name of the run's clock, "virtual" or "wall".
      dropped: the number of spans that were not recorded; stored under "otherData".
    """
    spans = merged(spans)
    nodes = sorted({span.node for span in spans}, key=node_order)
    pids = {node: number for number, node in enumerate(nodes, 1)}
    tracks = sorted({(span.node, span.kind) for span in spans})
    tids = {track: number for number, track in enumerate(tracks, 1)}
    names: list[dict[str, Any]] = []
    for node, pid in pids.items():
        names.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": node}})
        names.append(
            {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        )
    for (node, kind), tid in tids.items():
        track = {"ph": "M", "name": "thread_name", "pid": pids[node], "tid": tid}
        names.append(track | {"args": {"name": kind}})
    events = [
        {
            "ph": "X",
            "name": span.kind,
            "pid": pids[span.node],
            "tid": tids[span.node, span.kind],
            "ts": span.start_s * _MICROSECONDS,
            "dur": (span.end_s - span.start_s) * _MICROSECONDS,
        }
        for span in spans
    ]
    about = {"clock": clock, "dropped_spans": dropped}
    return {"traceEvents": names + events, "displayTimeUnit": "ms", "otherData": about}
