"""Draws Figure 4: accuracy over time, on part of the training set and on the hold-out set."""

from __future__ import annotations

from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.figure4.methods import METHODS
from experiments.figure4.results import Runs, label, stated

_PANELS = {"train_accuracy": "part of the training set", "test_accuracy": "hold-out set"}


def figure(runs: Runs, caption: str) -> Figure:
    """Draws one panel per set of examples.

    Lines are medians over seeds; bands reach from the lowest to the highest seed.

    Args:
      runs: the runs of each method.
      caption: the text below the panels.
    """
    with matplotlib.style.context(plots.STYLE):
        drawn = Figure(figsize=(11, 5.4))
        panels = drawn.subplots(1, len(_PANELS), sharey=True)
        for axes, (field, title) in zip(panels, _PANELS.items(), strict=True):
            _panel(axes, runs, field)
            axes.set_title(title, fontsize=10)
        panels[0].set_ylabel("accuracy (%)")
        panels[-1].axhline(100 * stated(runs), color="0.5", linestyle=":", linewidth=1)
        panels[-1].annotate(
            "final\nSGD [1]",
            (1.01, 100 * stated(runs)),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="0.4",
            va="center",
        )
        panels[-1].legend(loc="lower right", fontsize=8)
        drawn.supxlabel(caption, fontsize=8, color="0.4")
        return drawn


def _panel(axes: Axes, runs: Runs, field: str) -> None:
    for key, mine in runs.items():
        method = METHODS[key]
        colour = plots.METHODS[method.name][0]
        time_s = [row["time_s"] for row in max((run.rows for run in mine), key=len)]
        percent = 100 * np.array([_held([row[field] for row in run.rows], time_s) for run in mine])
        axes.plot(
            time_s,
            np.median(percent, axis=0),
            method.line,
            color=colour,
            label=label(key, mine),
        )
        axes.fill_between(
            time_s, percent.min(0), percent.max(0), color=colour, alpha=0.15, linewidth=0
        )
    axes.set_xlim(0, max(run.end_s for mine in runs.values() for run in mine))
    axes.set_xlabel("time (virtual seconds)")
    hours = axes.secondary_xaxis("top", functions=(_to_hours, _to_seconds))
    hours.set_xlabel("virtual hours", fontsize=8)
    hours.tick_params(labelsize=8)


def _held(values: list[float], time_s: list[float]) -> list[float]:
    """Extends the values of a run that ended early with its last value."""
    return values + values[-1:] * (len(time_s) - len(values))


def _to_hours(seconds: Any) -> Any:
    return seconds / 3600


def _to_seconds(hours: Any) -> Any:
    return hours * 3600
