"""Spans in the compact form that the page embeds, merged to as many blocks as it can draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.monitoring.fault_injection import kills
from experiments.report.read import Numbers, Run, Spans

TICKS = 10_000_000  # time resolution: the number of ticks per run


def with_deaths(run: Run) -> Run:
    """Returns the run with a span of kind "dead" for each period in which a node was down."""
    spans, dead = run.spans, kills(run.events)
    if not dead:
        return run
    nodes = tuple(dict.fromkeys((*spans.nodes, *(death.node for death in dead))))
    start_s = np.array([death.at_s for death in dead])
    more = Spans(
        nodes,
        (*spans.kinds, "dead"),
        np.append(spans.node, [nodes.index(death.node) for death in dead]),
        np.append(spans.kind, [len(spans.kinds)] * len(dead)),
        np.append(spans.start_s, start_s),
        np.append(
            spans.end_s, np.minimum(start_s + [death.back_after_s for death in dead], run.end_s)
        ),
        spans.dropped,
    )
    return dataclasses.replace(run, spans=more)


def timeline(run: Run, limit: int) -> dict[str, Any]:
    """Returns the spans as tracks of blocks, one track per node and kind, as values for JSON.

    Each span becomes a block. If there are more than `limit` spans, the spans of a track with the
    shortest gaps between them are merged into one block.

    Args:
      run: the run.
      limit: the largest number of blocks.

    Returns:
      A dict. In each of its "tracks", "blocks" is the list [gap, length, gap, length, ...] in ticks
      from the start of the run, and "counts" holds the number of spans in each block; it is left
      out if all are 1. "joined_below_s" is the longest gap that was closed, in seconds, or None.
    """
    spans = run.spans
    tick_s = max(run.end_s, float(spans.end_s.max(initial=0.0)), 1e-9) / TICKS
    order = np.lexsort((spans.start_s, spans.kind, spans.node))
    node, kind = spans.node[order], spans.kind[order]
    start_s, end_s = spans.start_s[order], spans.end_s[order]
    same = (node[1:] == node[:-1]) & (kind[1:] == kind[:-1])
    gaps_s = np.where(same, np.maximum(start_s[1:] - end_s[:-1], 0.0), np.inf)
    longest_s = _longest(gaps_s, len(spans) - limit)
    begins = np.flatnonzero(np.append(True, gaps_s > longest_s))[: len(spans)]
    ends_s = np.maximum.reduceat(end_s, begins) if len(begins) else end_s
    counts = np.diff(np.append(begins, len(spans)))
    tracks: list[dict[str, Any]] = []
    where = (node[begins] * len(spans.kinds) + kind[begins]) if len(begins) else begins
    for track in np.unique(where):
        of = where == track
        n, k = divmod(int(track), len(spans.kinds))
        blocks = _ticks(start_s[begins][of], ends_s[of], tick_s)
        tracks.append({"node": n, "kind": k, "blocks": blocks})
        if counts[of].max() > 1:
            tracks[-1]["counts"] = counts[of].tolist()
    return {
        "nodes": list(spans.nodes),
        "kinds": list(spans.kinds),
        "tick_s": tick_s,
        "tracks": tracks,
        "spans": len(spans),
        "drawn": len(begins),
        "dropped": spans.dropped,
        "joined_below_s": longest_s if len(begins) < len(spans) else None,
    }


def _longest(gaps_s: Numbers, too_many: int) -> float:
    """Returns the longest gap to close to remove `too_many` blocks; negative for none."""
    closable = np.sort(gaps_s[np.isfinite(gaps_s)])
    return (
        float(closable[min(too_many, len(closable)) - 1])
        if too_many > 0 and len(closable)
        else -1.0
    )


def _ticks(start_s: Numbers, end_s: Numbers, tick_s: float) -> list[int]:
    starts = np.rint(start_s / tick_s).astype(int)
    lengths = np.rint(end_s / tick_s).astype(int) - starts
    found: list[int] = np.stack([np.diff(starts, prepend=0), lengths], 1).ravel().tolist()
    return found
