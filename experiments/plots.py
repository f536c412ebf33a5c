"""Draws figures: pure functions of a run's results. Each method has its own colour and marker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import dbjax
from dbjax.files import os_errors_naming
from dbjax.run_dir.chrome_trace import merged
from dbjax.runtime.node_names import node_order
from dbjax.runtime.trace import Row, Span

STYLE = Path(__file__).with_name("dbjax.mplstyle")
METHODS = {  # name without the number of machines in brackets -> colour, marker
    "SGD": ("#444444", "o"),
    "GPU": ("#009e73", "*"),
    "Downpour": ("#0072b2", "s"),
    "Downpour + Adagrad": ("#d55e00", "^"),
    "Sandblaster L-BFGS": ("#cc79a7", "v"),
}
ALGORITHMS = {"sgd": "SGD", "downpour": "Downpour", "sandblaster": "Sandblaster"}
RULES = {"lbfgs": " L-BFGS", "downpour_adagrad": " + Adagrad", "adagrad": " + Adagrad"}
_OTHER = ("#56b4e9", "D")
KINDS = {"compute": "#0072b2", "fetch": "#e69f00", "push": "#cc79a7", "apply": "#009e73"}


def curves(runs: Mapping[str, Sequence[Row]], *, clock: str, caption: str) -> Figure:
    """Plots accuracy against time for each run, or training loss if none has an accuracy.

    Args:
      runs: the evaluations of each run, by the label to show; labels may end in " [MACHINES]".
      clock: the name of the runs' clock, "virtual" or "wall".
      caption: what to print below the plot, such as the number of runs and the seeds.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        accuracy = any("test_accuracy" in row for rows in runs.values() for row in rows)
        for label, rows in runs.items():
            _curve(axes, label, rows, accuracy)
        axes.set_xlabel(f"time ({clock} seconds)")
        axes.set_ylabel("accuracy (%)" if accuracy else "training loss")
        if not accuracy and _spans_decades(runs):
            axes.set_yscale("log")
        axes.legend()
        figure.supxlabel(f"{caption}; {clock} clock", fontsize=8, color="0.4")
        return figure


def _spans_decades(runs: Mapping[str, Sequence[Row]]) -> bool:
    """Whether losses are positive, and the largest is more than 100 times the smallest."""
    losses = [row["train_loss"] for rows in runs.values() for row in rows]
    finite = [loss for loss in losses if math.isfinite(loss)]
    return bool(finite) and min(finite) > 0 and max(finite) > 100 * min(finite)


def _curve(axes: object, label: str, rows: Sequence[Row], accuracy: bool) -> None:
    colour, marker = METHODS.get(label.split(" [")[0], _OTHER)
    times = [row["time_s"] for row in rows]
    draw = axes.plot  # type: ignore[attr-defined]
    if not accuracy:
        draw(times, [row["train_loss"] for row in rows], color=colour, marker=marker, label=label)
        return
    every = max(1, len(rows) // 12)
    for field, style, name in (
        ("test_accuracy", "-", "hold-out"),
        ("train_accuracy", ":", "training set"),
    ):
        draw(
            times,
            [100 * row.get(field, math.nan) for row in rows],
            style,
            color=colour,
            marker=marker if style == "-" else None,
            markevery=every,
            label=f"{label}, {name}",
        )


def timeline(spans: Sequence[Span], begin_s: float, end_s: float, *, title: str) -> Figure:
    """Draws the work of each node over time: a row for each node, a colour for each kind of work.

    Args:
      spans: the spans of a run.
      begin_s: where the time axis begins, in seconds of the run's clock.
      end_s: where the time axis ends.
      title: the title of the figure.
    """
    shown = [s for s in merged(spans) if s.end_s >= begin_s and s.start_s <= end_s]
    nodes = sorted({span.node for span in shown}, key=node_order)
    thickness = {
        "compute": (-0.4, 0.8),
        "apply": (-0.4, 0.8),
        "fetch": (0.0, 0.4),
        "push": (-0.4, 0.4),
    }
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(10, 0.6 + 0.24 * len(nodes)))
        axes = figure.add_subplot()
        for row, node in enumerate(nodes):
            for kind, (below, height) in thickness.items():
                bars = [
                    (s.start_s, max(s.end_s - s.start_s, 0))
                    for s in shown
                    if s.node == node and s.kind == kind
                ]
                axes.broken_barh(bars, (row + below, height), facecolors=KINDS[kind], linewidth=0)
        axes.set_yticks(range(len(nodes)), nodes)
        axes.set_ylim(len(nodes) - 0.4, -0.6)
        axes.set_xlim(begin_s, end_s)
        axes.set_xlabel("time (virtual seconds)")
        axes.set_title(title)
        axes.legend(
            handles=[Patch(color=c, label=k) for k, c in KINDS.items()],
            ncols=4,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
        )
        return figure


def schedule(table: dbjax.Schedule, *, pushes: int = 60) -> Figure:
    """Draws the pushes of a schedule as the first shard applies them, and their staleness.

    Args:
      table: the schedule.
      pushes: how many pushes are drawn, from the middle of the schedule.
    """
    stale = table.staleness()[:, 0]
    position, first = table.position[:, 0], table.first[:-1]
    order = np.argsort(position)[int((position < 0).sum()) :]
    begin = max(0, (len(order) - pushes) // 2)
    shown = order[begin : begin + pushes]
    with matplotlib.style.context(STYLE):
        numbers, lane = np.unique(table.replica[first[shown]], return_inverse=True)
        figure = Figure(figsize=(10, 1.8 + 0.2 * max(10, len(numbers))), layout="constrained")
        lanes, counts = figure.subplots(1, 2, width_ratios=(2.4, 1))
        versions = table.version[first[shown], 0]
        lanes.hlines(lane, versions, position[shown], color="#56b4e9", linewidth=2)
        lanes.plot(versions, lane, "|", color="#0072b2", label="version that a gradient read")
        lanes.plot(position[shown], lane, "o", color="#d55e00", label="update that applied it")
        lanes.set_yticks(range(len(numbers)), [str(number) for number in numbers])
        lanes.set_ylim(len(numbers) - 0.5, -0.5)
        lanes.set_xlabel("updates of the first shard")
        lanes.set_ylabel("replica")
        lanes.set_title(f"{len(shown)} of {len(order):,} pushes (length of a line: staleness)")
        figure.legend(*lanes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        values, frequency = np.unique(stale[stale >= 0], return_counts=True)
        share = 100 * frequency / max(1, frequency.sum())
        mean = float(stale[stale >= 0].mean()) if len(values) else 0.0
        counts.bar(values, share, width=1.0, color="#56b4e9", edgecolor="white", linewidth=0.3)
        counts.axvline(mean, color="#d55e00")
        counts.set_xlabel("staleness (updates)")
        counts.set_ylabel("share of pushes (%)")
        counts.set_title(f"mean staleness {mean:.3g}")
        return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG atomically.

    Raises:
      OSError: the file cannot be written; names the file.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with os_errors_naming(path):
            FigureCanvasAgg(figure).print_png(str(temporary))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
