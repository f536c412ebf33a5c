"""Tables that compare claims of the paper with what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import rich.table

Verdict = Literal["fitted", "holds", "holds in part", "does not hold here", "no verdict"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper and its counterpart in our results.

    Attributes:
      paper: the claim, quoted or paraphrased.
      ours: what was measured here.
      verdict: whether the measurement agrees with the claim.
    """

    paper: str
    ours: str
    verdict: Verdict


def verdict(agrees: Sequence[float]) -> Verdict:
    """Combines several comparisons, such as one for each seed, into a verdict.

    Args:
      agrees: for each comparison, how far it agrees with the claim: from 0 (not at all) to 1
        (completely).
    """
    if min(agrees) == 1:
        return "holds"
    return "holds in part" if max(agrees) > 0 else "does not hold here"


def supported(claim: Claim, guessing: Sequence[str]) -> Claim:
    """Withdraws the verdict of a claim if it rests on runs that learned nothing.

    Args:
      claim: the claim with its verdict.
      guessing: descriptions of such runs, from `accuracy.guessing`; empty if there are none.
    """
    if not guessing:
        return claim
    why = f"no verdict, since runs learned nothing: {'; '.join(dict.fromkeys(guessing))}"
    return dataclasses.replace(claim, ours=f"{claim.ours} ({why})", verdict="no verdict")


def markdown(claims: Sequence[Claim], measured: str) -> str:
    """The claims as a Markdown table.

    Args:
      claims: one row each.
      measured: the title of the second column.
    """
    lines = [f"| the paper | {measured} | |", "|---|---|---|"]
    lines += [f"| {c.paper} | {c.ours} | {c.verdict} |" for c in claims]
    return "\n".join(lines) + "\n"


def table(claims: Sequence[Claim], measured: str, title: str) -> rich.table.Table:
    """The claims as a table for the terminal; see `markdown`."""
    drawn = rich.table.Table("the paper", measured, "", title=title)
    for claim in claims:
        drawn.add_row(claim.paper, claim.ours, claim.verdict)
    return drawn
