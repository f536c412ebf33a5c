"""Fits the cluster of 2012 to the speech curve of Figure 3.

The paper states two facts about that curve: the speed-up is 2.2 at 8 machines, and this is its
maximum. Two numbers of the cluster are fitted to them: the speed of a machine, and the cost of a
message. The maximum is taken to be at 8 machines if the curve falls off equally to both sides, that
is, if 4 and 16 machines are equally fast.

Paper: section 5, Figure 3.
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
    """Returns the time of a mini-batch on one machine divided by its time on `machines`.

    Computation and communication do not overlap.
    """
    alone, together = (predicted(costs[n], cluster).upper_s for n in (1, machines))
    return alone / together


def calibrated(speech: Mapping[int, Costs], assumed: Cluster) -> Cluster:
    """Fits the speed of a machine and the cost of a message to the paper's speech curve.

    Args:
      speech: number of machines -> costs of the speech network; 1, 4, 8 and 16 are required.
      assumed: the cluster that provides everything else.

    Returns:
      `assumed` with the two fitted numbers.

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
    """Finds the zero of an increasing function by bisection.

    Args:
      f: the function.
      low: the lower end of the interval.
      high: the upper end of the interval.
      what: what the argument of `f` stands for, for the error message.

    Raises:
      ValueError: `f` does not change its sign between `low` and `high`.
    """
    if f(low) > 0 or f(high) < 0:
        raise ValueError(f"no {what} gives {BEST} times at {AT} machines as the maximum")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return (low + high) / 2
