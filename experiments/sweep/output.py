"""Writes the files of a sweep, and draws its table: the best config, a CSV, pictures."""

from __future__ import annotations

import csv
import io
import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.table

from dbjax.files import plain, write_text
from experiments import plots
from experiments.sweep import pictures
from experiments.sweep.results import SweepResult

_SHOWN = 10


def write(result: SweepResult, workdir: Path) -> None:
    """Writes trials.csv and, if a trial was completed, best.py and the pictures.

    The folders of the trials themselves are written by the driver.
    """
    write_text(workdir / "trials.csv", _csv(result))
    if result.best is None:
        return
    write_text(workdir / "best.py", _config_file(result, workdir))
    for name, figure in pictures.figures(result).items():
        plots.save(figure, workdir / f"{name}.png")


def _csv(result: SweepResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = {"value": result.plan.metric, "deviation": f"{result.plan.metric}_deviation"}
    writer.writerow([names.get(name, name) for name in result.rows[0]])
    for row in result.rows:
        writer.writerow("" if v != v else v for v in row.values())
    return text.getvalue()


def _config_file(result: SweepResult, workdir: Path) -> str:
    assert result.best is not None
    assert result.best_row is not None
    chosen = {name: result.best_row[name] for name in result.plan.space.space}
    fields = plain(result.best.to_dict(), infinity="inf")
    return (
        f'"""The best of {len(result.rows)} trials of {result.label}: '
        f"{result.plan.words} {result.value:.6g} (trial {result.best_row['trial']}).\n\n"
        f"python -m experiments.run --config={workdir / 'best.py'} --workdir=runs/best\n"
        f'"""\n\nimport ml_collections\n\nfrom experiments.saved import restored\n\n'
        f"VARIANTS = ()\n"
        f"CHOSEN = {pprint.pformat(chosen, width=95, sort_dicts=False)}\n"
        f"FIELDS = {pprint.pformat(fields, width=95, sort_dicts=False)}  # every field\n\n\n"
        f'def get_config(variant: str = "") -> ml_collections.ConfigDict:\n'
        f"    return restored(FIELDS, __file__)\n"
    )


def table(result: SweepResult) -> rich.table.Table:
    """Returns a table of the best trials, and of the first few that failed."""
    fields = list(result.plan.space.space)
    sign = 1 if result.plan.direction == "minimize" else -1
    ranked = sorted(
        (row for row in result.rows if row["state"] == "complete"),
        key=lambda row: (sign * row["value"], row["trial"]),
    )
    failed = [row for row in result.rows if row["error"]]
    title = f"best of {len(result.rows)} trials by {result.plan.words}"
    drawn = rich.table.Table(title=title, title_justify="left", caption=result.caption)
    for column in ("trial", result.plan.words, *_short(fields), "wall s"):
        drawn.add_column(column, justify="right", overflow="fold")
    for row in ranked[:_SHOWN]:
        cells = [_cell(row[name]) for name in fields]
        drawn.add_row(str(row["trial"]), _value(row), *cells, f"{row['wall_s']:.1f}")
    for row in failed[:3]:
        cells = [_cell(row[name]) for name in fields]
        drawn.add_row(str(row["trial"]), f"failed: {row['error'][:80]}", *cells)
    return drawn


def _short(fields: Sequence[str]) -> list[str]:
    """Returns the field names without their groups, where the result is unambiguous."""
    last = [name.rpartition(".")[2] for name in fields]
    return [one if last.count(one) == 1 else name for name, one in zip(fields, last, strict=True)]


def _value(row: dict[str, Any]) -> str:
    deviation = row["deviation"]
    return f"{row['value']:.4g}" + ("" if deviation != deviation else f" ± {deviation:.2g}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
