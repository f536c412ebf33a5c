"""What the command of a figure leaves: its numbers, its picture, the paper's sentences."""

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
    """Writes NAME.csv, NAME.png and claims.md, and shows the claims.

    Where the workdir lies in results/, also the page that has the claims of all figures.

    Args:
      measured: title of what stands beside the paper's sentences.
      notes: what stands below them.
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
    """CSV with a header, six digits of fractions; all rows have the fields of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    return text.getvalue()


def _page(tables: Sequence[Path]) -> str:
    """Every figure's claims below its picture."""
    parts = [
        "# Results\n\nThe paper's sentences beside what was measured here. Written by the commands "
        "that draw the figures; [docs/results.md](../docs/results.md) says what it depends on.\n"
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
