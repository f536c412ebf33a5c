"""Writes the results of a figure's command: numbers, picture and verdicts on the paper's claims."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
from matplotlib.figure import Figure

from dbjax.files import write_text
from experiments import plots
from experiments.claims import Claim, markdown, table

RESULTS = Path("results")


def leave(
    name: str,
    workdir: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    picture: Figure,
    claims: Sequence[Claim],
    measured: str,
    notes: str,
) -> None:
    """Writes NAME.csv, NAME.png and claims.md, and prints the claims.

    If the workdir is directly in results/, updates results/README.md too, which has the claims of
    all figures.

    Args:
      name: the name of the figure and its command, such as "figure4".
      workdir: the folder to write to.
      rows: the numbers behind the picture; all rows have the same fields.
      picture: the figure to save.
      claims: the paper's claims with our verdicts.
      measured: the title of the column with our measurements.
      notes: Markdown to put below the claims.
    """
    write_text(workdir / f"{name}.csv", csv_text(rows))
    plots.save(picture, workdir / f"{name}.png")
    write_text(workdir / "claims.md", f"{markdown(claims, measured)}\n{notes}\n")
    if workdir.resolve().parent == RESULTS.resolve():
        write_text(RESULTS / "README.md", _page(sorted(RESULTS.glob("*/claims.md"))))
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(claims, measured, _title(name)))
    console.print(f"picture: {workdir / name}.png\nnumbers: {workdir / name}.csv", soft_wrap=True)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows as CSV with a header; floats have six significant digits.

    Args:
      rows: at least one row; all have the fields of the first.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    return text.getvalue()


def _page(tables: Sequence[Path]) -> str:
    """The results page: each figure's picture with its claims below."""
    parts = [
        "# Results\n\nClaims of the paper and what was measured here. This page is written by the "
        "commands that draw the figures; [docs/results.md](../docs/results.md) says what the "
        "results depend on.\n"
    ]
    for path in tables:
        name = path.parent.name
        parts.append(
            f"## {_title(name)}\n`python -m experiments.{name}`\n\n![{_title(name)}]"
            f"({name}/{name}.png)\n\n{path.read_text()}"
        )
    return "\n".join(parts)


def _title(name: str) -> str:
    return name.replace("figure", "Figure ")
