"""Compares what section 5 of the paper says about Figure 5 with the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.claims import Claim, supported, verdict
from experiments.figure4.methods import CORES
from experiments.figure4.results import seconds
from experiments.figure5.points import Point

BEST, FIXED, BATCH = "downpour_adagrad", "downpour", "sandblaster"
EXTREME = 30_080  # cores of the configuration that is nearest to the 30,000 of the paper
OFTEN = 1 / 3  # share of the runs


def claims(points: Sequence[Point], deadline_s: float) -> list[Claim]:
    """Returns the claims of section 5 about Figure 5.

    Budgets are the numbers of machines of the configurations.

    Args:
      points: the points of the figure.
      deadline_s: the virtual time at which runs end.
    """
    cpus = [point for point in points if point.curve != "gpu"]
    downpour = [point for point in points if point.curve in (FIXED, BEST)]
    return [
        supported(_best(cpus), _guessing(cpus)),
        supported(_misses(points, deadline_s), _guessing(downpour)),
        supported(_extreme(cpus), _guessing(cpus)),
    ]


def _guessing(points: Sequence[Point]) -> list[str]:
    return [message for point in points for message in point.guessing]


def within(points: Sequence[Point], machines: int, seed: int) -> Point | None:
    """Returns the fastest configuration with at most `machines` machines.

    Args:
      points: the configurations.
      machines: the budget.
      seed: the index of the seed.

    Returns:
      None if no configuration within the budget reaches the accuracy.
    """
    fitting = [p for p in points if p.machines <= machines and math.isfinite(p.times_s[seed])]
    return min(fitting, key=lambda point: point.times_s[seed], default=None)


def _winners(points: Sequence[Point], machines: int) -> list[Point | None]:
    return [within(points, machines, seed) for seed in range(len(points[0].times_s))]


def _named(winners: Sequence[Point | None]) -> str:
    """Returns the distinct winners over all seeds, in words."""
    names = [w.method.label(w.replicas) if w else "none" for w in winners]
    return " or ".join(dict.fromkeys(names))


def _best(points: Sequence[Point]) -> Claim:
    """Scores each seed by the share of budgets at which Downpour + Adagrad is the fastest."""
    budgets = sorted({point.machines for point in points})
    winners = {budget: _winners(points, budget) for budget in budgets}
    seeds = zip(*winners.values(), strict=True)
    shares = [sum(w is not None and w.curve == BEST for w in one) / len(one) for one in seeds]
    message = "; ".join(f"{budget:,} machines: {_named(winners[budget])}" for budget in budgets)
    return Claim(
        "Downpour + Adagrad is the best trade-off for any fixed budget",
        f"the fastest with at most {message}",
        verdict(shares),
    )


def _misses(points: Sequence[Point], deadline_s: float) -> Claim:
    """Scores 1/2 for missing at least a third of the deadlines, 1/2 for more than with Adagrad."""

    def missed(curve: str) -> tuple[int, int]:
        times = [t for point in points if point.curve == curve for t in point.times_s]
        return sum(map(math.isinf, times)), len(times)

    (fixed, of), (adagrad, of_adagrad) = missed(FIXED), missed(BEST)
    return Claim(
        "Downpour with a fixed rate often misses the deadline (taken as: in at least a third of "
        "the runs, and more often than with Adagrad)",
        f"{fixed} of {of} runs miss the deadline of {deadline_s:g} s; with Adagrad, {adagrad} of "
        f"{of_adagrad}",
        verdict([0.5 * (fixed >= OFTEN * of) + 0.5 * (fixed / of > adagrad / of_adagrad)]),
    )


def _extreme(points: Sequence[Point]) -> Claim:
    """Scores 1/2 each for being fastest with the paper's cores, and with the most cores."""
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
        "Sandblaster is the most promising at extreme budgets (30,000 cores)",
        f"Sandblaster: {curve}. The fastest with at most {soonest}",
        verdict([sum(seed) for seed in zip(*halves, strict=True)]),
    )
