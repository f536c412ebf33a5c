"""The paper's sentences on Figure 5 beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.claims import Claim, verdict
from experiments.figure4.results import seconds
from experiments.figure5.points import Point

BEST, FIXED, BATCH = "downpour_adagrad", "downpour", "sandblaster"


def claims(points: Sequence[Point], deadline_s: float) -> list[Claim]:
    """Section 5, on Figure 5; budgets are the numbers of machines that configurations take."""
    cpus = [point for point in points if point.curve != "gpu"]
    return [_best(cpus), _misses(points, deadline_s), _extreme(cpus)]


def within(points: Sequence[Point], machines: int) -> Point:
    """The soonest with at most so many machines; of equals the smallest."""
    fitting = [point for point in points if point.machines <= machines]
    return min(fitting, key=lambda point: (point.time_s, point.machines))


def _best(points: Sequence[Point]) -> Claim:
    least = min(point.machines for point in points if point.curve == BEST)
    budgets = sorted({point.machines for point in points if point.machines >= least})
    winners = [within(points, budget) for budget in budgets]
    said = "; ".join(
        f"{budget:,} machines: {winner.method.label(winner.replicas)} {seconds(winner.times_s)}"
        for budget, winner in zip(budgets, winners, strict=True)
    )
    return Claim(
        "Downpour + Adagrad is the best trade-off for any fixed budget",
        said,
        verdict([winner.curve == BEST for winner in winners]),
    )


def _misses(points: Sequence[Point], deadline_s: float) -> Claim:
    def missed(curve: str) -> tuple[int, int]:
        times = [t for point in points if point.curve == curve for t in point.times_s]
        return sum(map(math.isinf, times)), len(times)

    (fixed, of), (adagrad, of_adagrad) = missed(FIXED), missed(BEST)
    return Claim(
        "Downpour with a fixed rate often misses the deadline",
        f"{fixed} of {of} runs do not get there in {deadline_s:g} s; with Adagrad {adagrad} of "
        f"{of_adagrad}",
        verdict([fixed > 0, fixed / of > adagrad / of_adagrad]),
    )


def _extreme(points: Sequence[Point]) -> Claim:
    """Whether more machines still help, and it is the soonest of all with the most of them."""
    batch = sorted((p for p in points if p.curve == BATCH), key=lambda p: p.machines)
    falls = batch[-1].time_s < batch[-2].time_s
    soonest = within(points, batch[-1].machines)
    return Claim(
        "Sandblaster promises most at extreme budgets (30,000 cores)",
        f"from {batch[-2].cores:,} to {batch[-1].cores:,} cores: {seconds(batch[-2].times_s)}, "
        f"then {seconds(batch[-1].times_s)}; soonest of all with so many: "
        f"{soonest.method.label(soonest.replicas)}",
        verdict([falls, soonest.curve == BATCH]),
    )
