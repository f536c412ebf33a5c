"""The picture: time to a hold-out accuracy against machines, and against cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure5.points import Point
from experiments.plots import METHODS, STYLE


def figure(points: Sequence[Point], accuracy: float, deadline_s: float, caption: str) -> Figure:
    """Medians over seeds; bars from the lowest to the highest. Below the line: in time."""
    with matplotlib.style.context(STYLE):
        drawn = Figure(figsize=(11, 5.4))
        panels = drawn.subplots(1, 2, sharey=True)
        for axes, (field, title) in zip(
            panels, (("machines", "machines"), ("cores", "cores, at most")), strict=True
        ):
            _panel(axes, points, field, deadline_s)
            axes.set_xlabel(title)
        panels[0].set_ylabel(f"virtual seconds to {accuracy:.1%} on the hold-out set")
        panels[0].legend(loc="lower left", fontsize=8)
        drawn.supxlabel(caption, fontsize=8, color="0.4")
        return drawn


def _panel(axes: Axes, points: Sequence[Point], field: str, deadline_s: float) -> None:
    late = 1.25 * deadline_s
    for curve in {point.curve: None for point in points}:
        mine = sorted((p for p in points if p.curve == curve), key=lambda p: p.machines)
        name = mine[0].method.name
        colour, marker = METHODS[name]
        budgets = [getattr(point, field) for point in mine]
        label = name if len(mine) > 1 else mine[0].method.label(mine[0].replicas)
        heights = [p.time_s if math.isfinite(p.time_s) else math.nan for p in mine]
        axes.plot(budgets, heights, color=colour, marker=marker, label=label)
        for budget, point in zip(budgets, mine, strict=True):
            low, high = (min(deadline_s, end(point.times_s)) for end in (min, max))
            axes.plot([budget, budget], [low, high], color=colour, linewidth=1, alpha=0.6)
            if math.isinf(point.time_s):
                axes.plot(budget, late, marker=marker, color=colour, markerfacecolor="none")
            if field == "machines" and len(mine) > 1:
                axes.annotate(
                    f"[{point.replicas}]",
                    (budget, point.time_s if math.isfinite(point.time_s) else late),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
    axes.axhline(deadline_s, color="0.5", linestyle=":", linewidth=1)
    axes.annotate(
        "missed deadline: never there in the median",
        (0.99, late),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        color="0.4",
        ha="right",
        va="center",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
