"""Draws Figure 5: time to a hold-out accuracy against machines, and against cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from experiments.figure5.points import Point
from experiments.plots import METHODS, STYLE

_TICKS_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
# Missed deadlines are drawn at this multiple of the deadline; those of further curves go above.
_LATE = 1.3


def figure(points: Sequence[Point], accuracy: float, deadline_s: float, caption: str) -> Figure:
    """Draws one panel against machines, and one against cores.

    Points are medians over seeds, with bars from the lowest to the highest seed. Hollow markers
    above the dotted line are configurations whose median misses the deadline.

    Args:
      points: the points of all curves.
      accuracy: the hold-out accuracy that they refer to.
      deadline_s: the virtual time at which runs end.
      caption: the text below the panels.
    """
    panels = (
        ("machines", "machines (replicas and parameter server)"),
        ("cores", "cores (upper bound)"),
    )
    with matplotlib.style.context(STYLE):
        drawn = Figure(figsize=(11, 5.4))
        for axes, (field, title) in zip(drawn.subplots(1, 2, sharey=True), panels, strict=True):
            _panel(axes, points, field, deadline_s)
            axes.set_xlabel(title)
        drawn.axes[0].set_ylabel(f"virtual seconds to {accuracy:.1%} hold-out accuracy")
        drawn.axes[1].legend(loc="lower center", fontsize=8)
        drawn.supxlabel(caption, fontsize=8, color="0.4")
        return drawn


def _panel(axes: Axes, points: Sequence[Point], field: str, deadline_s: float) -> None:
    curves = list({point.curve: None for point in points})
    late = deadline_s * _LATE
    for curve in curves:
        mine = sorted((p for p in points if p.curve == curve), key=lambda p: p.machines)
        missed = any(math.isinf(point.time_s) for point in mine)
        _curve(axes, mine, field, deadline_s, late)
        late *= 1.2 if missed else 1.0
    axes.axhline(deadline_s, color="0.5", linestyle=":", linewidth=1)
    axes.annotate(
        "above this line, the median run misses the deadline",
        (0.01, deadline_s),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    times = [t for point in points for t in point.times_s if math.isfinite(t)]
    lowest = 0.7 * min(times, default=0.1 * deadline_s)
    axes.set_ylim(lowest, 1.1 * late)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([t for t in _TICKS_S if lowest <= t <= deadline_s])


def _curve(axes: Axes, mine: Sequence[Point], field: str, deadline_s: float, late: float) -> None:
    """Draws a curve, with hollow markers at height `late` where the median is infinite."""
    colour, marker = METHODS[mine[0].method.name]
    label = mine[0].method.name if len(mine) > 1 else mine[0].method.label(mine[0].replicas)
    budgets = [getattr(point, field) for point in mine]
    heights = [p.time_s if math.isfinite(p.time_s) else math.nan for p in mine]
    axes.plot(budgets, heights, color=colour, marker=marker, label=label)
    for budget, point in zip(budgets, mine, strict=True):
        low, high = (min(deadline_s, end(point.times_s)) for end in (min, max))
        axes.plot([budget, budget], [low, high], color=colour, linewidth=1, alpha=0.6)
        missed = math.isinf(point.time_s)
        if missed:
            axes.plot(budget, late, marker=marker, color=colour, markerfacecolor="none")
        if field == "machines" and len(mine) > 1:
            axes.annotate(
                f"[{point.replicas}]",
                (budget, late if missed else point.time_s),
                xytext=(5, -3) if missed else (4, 4),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
