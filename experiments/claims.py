"""Sentences of the paper beside what was measured, for a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import rich.table

Verdict = Literal["fitted", "holds", "holds in part", "does not hold here", "no verdict"]


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


def supported(claim: Claim, guessing: Sequence[str]) -> Claim:
    """The claim, without a verdict where runs that it goes by have learned nothing.

    Args:
      guessing: which of them, and how one knows (`accuracy.guessing`).
    """
    if not guessing:
        return claim
    why = f"no verdict, since runs learned nothing: {'; '.join(dict.fromkeys(guessing))}"
    return dataclasses.replace(claim, ours=f"{claim.ours} ({why})", verdict="no verdict")


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
