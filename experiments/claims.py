"""Sentences of the paper beside what was measured, for a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import rich.table

from dbjax.workdir.files import write_text

RESULTS = Path("results")
Verdict = Literal["fitted", "holds", "holds in part", "does not hold here"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what was measured, and whether that agrees."""

    paper: str
    ours: str
    verdict: Verdict


def verdict(agrees: Sequence[float]) -> Verdict:
    """Of several comparisons, one a seed where there are seeds.

    Args:
      agrees: of each: 1 if it agrees with the sentence, 0 if not; between them, in part.
    """
    if min(agrees) == 1:
        return "holds"
    return "holds in part" if max(agrees) > 0 else "does not hold here"


def markdown(claims: Sequence[Claim], measured: str) -> str:
    """A table; `measured` is the title of its second column."""
    lines = [f"| the paper | {measured} | |", "|---|---|---|"]
    lines += [f"| {c.paper} | {c.ours} | {c.verdict} |" for c in claims]
    return "\n".join(lines) + "\n"


def table(claims: Sequence[Claim], measured: str, title: str) -> rich.table.Table:
    """The same for a terminal."""
    drawn = rich.table.Table("the paper", measured, "", title=title)
    for claim in claims:
        drawn.add_row(claim.paper, claim.ours, claim.verdict)
    return drawn


def leave(workdir: Path, text: str) -> None:
    """Writes claims.md; where the workdir lies in results/, also the page that has them all."""
    write_text(workdir / "claims.md", text)
    if workdir.resolve().parent == RESULTS.resolve():
        write_text(RESULTS / "README.md", _page(sorted(RESULTS.glob("*/claims.md"))))


def _page(tables: Sequence[Path]) -> str:
    """Every figure's table below its picture."""
    parts = [
        "# Results\n\nThe paper's sentences beside what was measured here. Written by the commands "
        "that draw the figures; what it means is in docs/results.md.\n"
    ]
    for path in tables:
        name = path.parent.name
        parts.append(
            f"## {name.replace('figure', 'Figure ')}\n"
            f"`python -m experiments.{name}`\n\n![{name}]({name}/{name}.png)\n\n{path.read_text()}"
        )
    return "\n".join(parts)
