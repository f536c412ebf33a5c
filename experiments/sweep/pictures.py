"""Figures of a sweep: value against each field, parallel coordinates, field importance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.plots import STYLE
from experiments.sweep.results import SweepResult
from experiments.sweep.space import Values

_COMPLETE, _PRUNED, _BEST = "#0072b2", "#999999", "#d55e00"
Row = Mapping[str, Any]


def figures(result: SweepResult) -> dict[str, Figure]:
    """Draws all figures that the result allows.

    Returns:
      Each figure by the name of its file, without a suffix.
    """
    draw: dict[str, Callable[[SweepResult], Figure | None]] = {
        "fields": fields,
        "parallel": parallel,
        "importance": importance,
    }
    with matplotlib.style.context(STYLE):
        drawn = {name: function(result) for name, function in draw.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def fields(result: SweepResult) -> Figure:
    """Draws one panel per field, with the value of every trial against that field."""
    space = result.plan.space.space
    columns = 2 if len(space) == 4 else min(3, len(space))
    lines = math.ceil(len(space) / columns)
    figure = Figure(figsize=(max(7.5, 3.6 * columns + 1.2), 3.2 * lines + 1.3))
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes, (name, values) in zip(panels, space.items(), strict=False):
        _scatter(axes, result, name, values)
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    for line in range(lines):
        panels[line * columns].set_ylabel(_axis(result))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8)
    figure.suptitle(f"{_capital(result)} of every trial", x=0.02, ha="left")
    notes = ["Every panel shows the same trials; their other fields vary as well."]
    if any(row["state"] == "pruned" for row in result.rows):
        notes.append("Pruned trials: the value at which they were stopped.")
    if result.plan.runs > 1:
        notes.append("Error bars: standard deviation over the runs of a trial.")
    _caption(figure, result, " ".join(notes))
    return figure


def _scatter(axes: Axes, result: SweepResult, name: str, values: Values) -> None:
    scale = _scale(result)
    place, ticks = _places(values)
    jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(result.rows))
    if not ticks:
        jitter *= 0
    for state, looks in (
        ("pruned", {"marker": "x", "color": _PRUNED, "label": "pruned"}),
        ("complete", {"marker": "o", "color": _COMPLETE, "alpha": 0.7, "label": "complete"}),
    ):
        rows = [row for row in result.rows if row["state"] == state]
        x = [place(row[name]) + jitter[row["trial"]] for row in rows]
        y = [scale * row["value"] for row in rows]
        if rows:
            axes.scatter(x, y, s=22, linewidths=1, **looks)
        for at, row in zip(x, rows, strict=True):
            if row["deviation"] == row["deviation"]:
                deviation = scale * row["deviation"]
                axes.errorbar(at, scale * row["value"], deviation, color=_COMPLETE, alpha=0.4)
    best = result.best_row
    assert best is not None
    there = place(best[name]) + jitter[best["trial"]]
    label = f"best: trial {best['trial']}"
    axes.plot(there, scale * best["value"], "*", color=_BEST, markersize=14, label=label)
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    elif values.logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(_named(name, values))


def parallel(result: SweepResult) -> Figure | None:
    """Draws parallel coordinates: one axis per field, one line per complete trial.

    Returns:
      None if the space has a single field.
    """
    space = result.plan.space.space
    if len(space) < 2:
        return None
    rows = [row for row in result.rows if row["state"] == "complete"]
    scale, minimise = _scale(result), result.plan.direction == "minimize"
    values = [scale * row["value"] for row in rows]
    colours = matplotlib.colormaps["viridis_r" if minimise else "viridis"]
    normal = _shades(values, minimise)
    figure = Figure(figsize=(max(9.0, 1.9 * (len(space) + 1) + 2.6), 5.2))
    axes = figure.add_subplot()
    heights = [_heights(v) for v in space.values()]
    for row, value in sorted(
        zip(rows, values, strict=True), key=lambda pair: -pair[1] if minimise else pair[1]
    ):
        y = [along(row[name]) for (along, _), name in zip(heights, space, strict=True)]
        best = row is result.best_row
        axes.plot(
            range(len(space)), y, color=_BEST if best else colours(normal(value)),
            linewidth=3 if best else 1.1, alpha=1 if best else 0.75, zorder=3 if best else 2,
            label=f"best: trial {row['trial']}" if best else None,
        )  # fmt: skip
    for at, (_, ticks) in enumerate(heights):
        axes.axvline(at, color="0.3", linewidth=0.8, zorder=1)
        for height, text in ticks:
            axes.annotate(
                text, (at, height), xytext=(4, 0), textcoords="offset points", fontsize=8,
                va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
                zorder=4,
            )  # fmt: skip
    axes.set_xticks(range(len(space)), [_named(name, v) for name, v in space.items()])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(-0.25, len(space) - 1 + 0.45)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    beyond = {(True, False): "min", (False, True): "max"}.get(
        (min(values) < normal.vmin, max(values) > normal.vmax), "neither"
    )
    bar = figure.colorbar(ScalarMappable(normal, colours), ax=axes, pad=0.02, extend=beyond)
    bar.set_label(_axis(result))
    axes.set_title("Combinations of field values: one line per complete trial", loc="left")
    _caption(figure, result, "")
    return figure


def _shades(values: Sequence[float], minimise: bool) -> Any:
    """Returns a colour scale over the better three quarters of the values.

    The worst quarter shares one colour, so that the good trials can be told apart.
    """
    low, high = (
        (min(values), float(np.quantile(values, 0.75)))
        if minimise
        else (float(np.quantile(values, 0.25)), max(values))
    )
    return Normalize(low, high if high > low else low + 1e-9, clip=True)


def importance(result: SweepResult) -> Figure | None:
    """Draws how important each field is for a trial to be among the best (PED-ANOVA).

    Returns:
      None if there is a single field, if fewer than four trials are complete, or if all of them
      have the same value.
    """
    complete = sum(row["state"] == "complete" for row in result.rows)
    values = {row["value"] for row in result.rows if row["state"] == "complete"}
    if complete < 4 or len(values) < 2 or len(result.plan.space.space) < 2:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(result.study, evaluator=evaluator)
    names = sorted(found, key=lambda name: found[name])
    figure = Figure(figsize=(7.5, 1.9 + 0.45 * len(names)))
    axes = figure.add_subplot()
    axes.barh(names, [100 * found[name] for name in names], color=_COMPLETE, height=0.6)
    for at, name in enumerate(names):
        axes.annotate(
            f"{100 * found[name]:.0f} %", (100 * found[name], at), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(0, 108)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share (%)")
    axes.set_title(f"Importance of each field for {result.plan.words}", loc="left")
    _caption(
        figure,
        result,
        "PED-ANOVA: how much the best tenth of the trials differs from the others in a field, as a "
        f"share over all fields. Based on {complete} trials: an indication, not a measurement.",
    )
    return figure


def _places(values: Values) -> tuple[Callable[[Any], float], list[str]]:
    """Returns the position of a value on an axis; and for a choice, the tick labels, else []."""
    if not values.named:
        return float, []
    known = list(values.named.values())
    return lambda value: float(known.index(value)), [_text(value) for value in known]


def _heights(values: Values) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Returns the height of a value on its axis, from 0 to 1, and the ticks (height, label)."""
    place, names = _places(values)
    if names:
        last = max(1, len(names) - 1)
        return lambda value: place(value) / last, [(k / last, n) for k, n in enumerate(names)]
    low, high = map(float, values.ends)

    def along(value: Any) -> float:
        if high == low:
            return 0.5
        if values.logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (float(value) - low) / (high - low)

    ends = np.geomspace(low, high, 5) if values.logarithmic else np.linspace(low, high, 5)
    return along, [(along(value), f"{value:.3g}") for value in map(float, ends)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(name: str, values: Values) -> str:
    return f"{name}\n(log scale)" if values.logarithmic else name


def _scale(result: SweepResult) -> float:
    return 100.0 if result.plan.metric.endswith("accuracy") else 1.0


def _axis(result: SweepResult) -> str:
    return _capital(result) + (" (%)" if _scale(result) == 100 else "")


def _capital(result: SweepResult) -> str:
    return result.plan.words[0].upper() + result.plan.words[1:]


def _caption(figure: Figure, result: SweepResult, more: str) -> None:
    width = int(17 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(line, width) for line in (result.caption, more) if line)
    figure.supxlabel(text, fontsize=8, color="0.4")
