"""The paper's sentences on Figure 5 beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.claims import Claim, supported, verdict
from experiments.figure4.methods import CORES
from experiments.figure4.results import seconds
from experiments.figure5.points import Point

BEST, FIXED, BATCH = "downpour_adagrad", "downpour", "sandblaster"
EXTREME = 30_080  # cores: what the paper names, as far as a configuration of ours has it
OFTEN = 1 / 3  # of the runs


def claims(points: Sequence[Point], deadline_s: float) -> list[Claim]:
    """Section 5, on Figure 5; budgets are the numbers of machines that configurations take."""
    cpus = [point for point in points if point.curve != "gpu"]
    downpour = [point for point in points if point.curve in (FIXED, BEST)]
    return [
        supported(_best(cpus), _guessing(cpus)),
        supported(_misses(points, deadline_s), _guessing(downpour)),
        supported(_extreme(cpus), _guessing(cpus)),
    ]


def _guessing(points: Sequence[Point]) -> list[str]:
    return [said for point in points for said in point.guessing]


def within(points: Sequence[Point], machines: int, seed: int) -> Point | None:
    """What is soonest in a seed with at most so many machines; None: nothing gets there."""
    fitting = [p for p in points if p.machines <= machines and math.isfinite(p.times_s[seed])]
    return min(fitting, key=lambda point: point.times_s[seed], default=None)


def _winners(points: Sequence[Point], machines: int) -> list[Point | None]:
    return [within(points, machines, seed) for seed in range(len(points[0].times_s))]


def _named(winners: Sequence[Point | None]) -> str:
    """Of all seeds; once, if they agree."""
    names = [w.method.label(w.replicas) if w else "none" for w in winners]
    return " or ".join(dict.fromkeys(names))


def _best(points: Sequence[Point]) -> Claim:
    """Of each seed: the share of budgets at which it is the soonest."""
    budgets = sorted({point.machines for point in points})
    winners = {budget: _winners(points, budget) for budget in budgets}
    seeds = zip(*winners.values(), strict=True)
    shares = [sum(w is not None and w.curve == BEST for w in one) / len(one) for one in seeds]
    said = "; ".join(f"{budget:,} machines: {_named(winners[budget])}" for budget in budgets)
    return Claim(
        "Downpour + Adagrad is the best trade-off for any fixed budget",
        f"the soonest with at most {said}",
        verdict(shares),
    )


def _misses(points: Sequence[Point], deadline_s: float) -> Claim:
    """1 if it misses at least a third, and more than with Adagrad; 1/2 if one of the two."""

    def missed(curve: str) -> tuple[int, int]:
        times = [t for point in points if point.curve == curve for t in point.times_s]
        return sum(map(math.isinf, times)), len(times)

    (fixed, of), (adagrad, of_adagrad) = missed(FIXED), missed(BEST)
    return Claim(
        "Downpour with a fixed rate often misses the deadline (taken as: a third of the runs, and "
        "more than with Adagrad)",
        f"{fixed} of {of} runs do not get there in {deadline_s:g} s; with Adagrad {adagrad} of "
        f"{of_adagrad}",
        verdict([0.5 * (fixed >= OFTEN * of) + 0.5 * (fixed / of > adagrad / of_adagrad)]),
    )


def _extreme(points: Sequence[Point]) -> Claim:
    """Of each seed: 1 if it is the soonest with the paper's cores and with the most, else 1/2."""
    most = max(point.machines for point in points)
    named = max((p.machines for p in points if p.cores <= EXTREME), default=most)
    winners = {budget: _winners(points, budget) for budget in (named, most)}
    halves = [
        [0.5 * (w is not None and w.curve == BATCH) for w in winners[budget]]
        for budget in (named, most)
    ]
    batch = sorted((p for p in points if p.curve == BATCH), key=lambda p: p.machines)
    curve = "; ".join(f"{p.cores:,} cores {seconds(p.times_s)}" for p in batch)
    soonest = "; ".join(
        f"{CORES * budget:,} cores: {_named(winners[budget])}" for budget in (named, most)
    )
    return Claim(
        "Sandblaster promises most at extreme budgets (30,000 cores)",
        f"Sandblaster: {curve}. The soonest with at most {soonest}",
        verdict([sum(seed) for seed in zip(*halves, strict=True)]),
    )
