"""Spans as the page carries them: few bytes, and no more blocks than it can draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.monitoring.fault_injection import kills
from experiments.report.read import Numbers, Run, Spans

TICKS = 10_000_000  # that the run is cut into


def with_deaths(run: Run) -> Run:
    """With spans of kind "dead" for the nodes that died."""
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
    """Tracks of blocks, each of a node and a kind.

    A block is one span. Where there are more than `limit`, those neighbours on a track with the
    shortest gaps between them become one block, which says how many they are.

    Returns:
      "blocks" of a track are gap, length, gap, length, ... in ticks, from the beginning; "counts"
      are missing where all are 1.
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
    """The longest gap that is to be closed; below 0: none."""
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
