"""Draws Figure 3: speed-up against machines, on the cluster of 2012 and on a current one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure3.calibration import AT, BEST
from experiments.figure3.networks import SPEECH, VISION_80M, VISION_330M, VISION_1700M
from experiments.figure3.results import PAPER_MACHINES, PAPER_VISION
from experiments.plots import STYLE

LOOKS = {
    SPEECH: ("#444444", "o"),
    VISION_80M: ("#0072b2", "s"),
    VISION_330M: ("#d55e00", "^"),
    VISION_1700M: ("#009e73", "D"),
}


def figure(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], caption: str) -> Figure:
    """Draws one panel per cluster.

    Args:
      rows: the rows of the CSV file.
      titles: name of a cluster -> title of its panel.
      caption: the text below the panels.
    """
    with matplotlib.style.context(STYLE):
        drawn = Figure(figsize=(11, 5))
        panels = drawn.subplots(1, len(titles), squeeze=False)[0]
        for axes, (cluster, title) in zip(panels, titles.items(), strict=True):
            _panel(axes, [row for row in rows if row["cluster"] == cluster])
            axes.set_title(title, fontsize=10)
        _paper(panels[0])
        for axes in panels:
            axes.legend(loc="upper left", fontsize=8)
        drawn.supxlabel(caption, fontsize=8, color="0.4")
        return drawn


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    counts = sorted({row["machines"] for row in rows})
    for network in {row["network"]: None for row in rows}:
        colour, marker = LOOKS[network]
        mine = [row for row in rows if row["network"] == network]
        machines = [row["machines"] for row in mine]
        nothing_hidden = [row["speedup"] for row in mine]
        hidden = [row["speedup_if_overlapped"] for row in mine]
        label = f"{network} (ours: {mine[0]['parameters'] / 1e6:,.0f} M)"
        axes.plot(machines, nothing_hidden, color=colour, marker=marker, label=label)
        axes.fill_between(machines, nothing_hidden, hidden, color=colour, alpha=0.12, linewidth=0)
    axes.plot(counts, counts, ":", color="0.6", linewidth=1)
    axes.annotate("ideal", (counts[-1], counts[-1]), fontsize=8, color="0.5", ha="right")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    heights = [2**k for k in range(-3, 8)]
    axes.set_yticks(heights, [f"{h:g}" for h in heights])
    axes.minorticks_off()
    axes.set_ylim(0.125, 2 * counts[-1])
    axes.set_xlabel("machines per replica")
    axes.set_ylabel("speed-up of a mini-batch over one machine")


def _paper(axes: Axes) -> None:
    axes.plot(
        [AT], [BEST], "*", color="black", markersize=13, label=f"paper: {BEST} on {AT} (fitted)"
    )
    axes.plot(
        [PAPER_MACHINES],
        [PAPER_VISION],
        marker=(3, 0, 0),
        color="black",
        markersize=10,
        linestyle="none",
        label=f"paper: more than {PAPER_VISION:.0f} on {PAPER_MACHINES}",
    )
