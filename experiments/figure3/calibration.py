"""The cluster of 2012, from the speech curve of Figure 3 and nothing else.

The paper says two things of that curve: it is 2.2 at 8 machines, and that is its best. Two
numbers of the cluster are fitted to them: how fast a machine computes, and what a message
costs. The top of the curve is at 8 where it falls off equally to both sides of it: where 4
and 16 machines are equally fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dbjax.costs.program import Costs
from dbjax.costs.speedup import predicted
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.presets import with_speeds

BEST, AT = 2.2, 8


def speedup(costs: Mapping[int, Costs], machines: int, cluster: Cluster) -> float:
    """Time of a mini-batch on one machine over that on so many, nothing hidden."""
    whole, cut = (predicted(costs[n], cluster).upper_s for n in (1, machines))
    return whole / cut


def calibrated(speech: Mapping[int, Costs], assumed: Cluster) -> Cluster:
    """`assumed` with the two fitted numbers.

    Args:
      speech: costs of the speech network on 1, 4, 8 and 16 machines.

    Raises:
      ValueError: no positive numbers give that curve.
    """

    def at(message_s: float) -> Cluster:
        def height(log_flops: float) -> float:
            trial = with_speeds(assumed, flops_per_s=math.exp(log_flops), message_s=message_s)
            return BEST - speedup(speech, AT, trial)

        log_flops = root(height, math.log(1e6), math.log(1e18), "speed of a machine")
        return with_speeds(assumed, flops_per_s=math.exp(log_flops), message_s=message_s)

    def slope(log_message: float) -> float:
        trial = at(math.exp(log_message))
        return speedup(speech, AT // 2, trial) - speedup(speech, 2 * AT, trial)

    return at(math.exp(root(slope, math.log(1e-8), math.log(1.0), "cost of a message")))


def root(f: Callable[[float], float], low: float, high: float, what: str) -> float:
    """Where an increasing function is zero, by bisection.

    Raises:
      ValueError: it has one sign over all of low .. high.
    """
    if f(low) > 0 or f(high) < 0:
        raise ValueError(f"no {what} gives {BEST} times at {AT} machines as the best")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return (low + high) / 2
