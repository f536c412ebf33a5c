"""Predicts the distribution of staleness, and compares it with the measured histogram."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbjax.algorithms import downpour, sgd
from dbjax.runtime.cluster import Cluster, Machine
from dbjax.runtime.node_names import replica_name
from experiments import algorithms, build
from experiments.report.read import Numbers, Run
from experiments.saved import saved

_DRAWN = 100_000  # number of pushes to sample
_BARS = 60  # largest number of bars, apart from the last one
_TAIL = 0.002  # share of the pushes that the last, combined bar may hold


@dataclasses.dataclass(frozen=True)
class Law:
    """The predicted distribution of the staleness of a push, in updates.

    Attributes:
      said: the prediction in words, or why there is none.
      shares: staleness -> probability, or None if the distribution is unknown.
      mean: the predicted mean, or None if it is unknown as well.
    """

    message: str
    shares: Mapping[int, float] | None = None
    mean: float | None = None


def law(run: Run) -> Law:
    """Predicts the distribution of staleness from a run's configuration."""
    try:
        config = saved(run.path)
        method, cluster = algorithms.algorithm(config), build.cluster(config)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return Law(f"No prediction: the configuration cannot be read. {error}.")
    if isinstance(method, sgd.Config):
        return Law(
            "Predicted staleness: 0, since every step waits for all replicas.", {0: 1.0}, 0.0
        )
    if not isinstance(method, downpour.Config):
        return Law("No prediction: replicas push no gradients that could be stale.")
    mean = downpour.predicted_staleness_updates(method)
    if mean is None:
        return Law(
            "No prediction: the distribution is unknown if fetches overlap with computation, or if "
            "n_push is neither 1 nor n_fetch."
        )
    why = unknown(method, cluster, run)
    if why:
        return Law(
            f"The predicted mean is {_mean(method, mean)}. The distribution is unknown: {why}.",
            None,
            mean,
        )
    assert cluster is not None
    return _known(method, cluster, run, mean)


def unknown(method: downpour.Config, cluster: Cluster | None, run: Run) -> str:
    """Returns why only the mean can be predicted; empty if the distribution can be, too."""
    if cluster is None:
        return "in real time, computation times are not known in advance"
    machines = (cluster.machine, *cluster.machines.values())
    if not cluster.compute_s:
        return "computations take no time"
    if run.events or cluster.failures or not _immortal(machines):
        return "nodes fail"
    if method.n_fetch != method.n_push:
        return "a fetch serves several pushes"
    if method.warm_start_s or method.warm_start_updates:
        return "one replica works alone during the warm start"
    if method.shard_backups:
        return "shards wait for their backups"
    if not isinstance(cluster.compute_s, float) or not _network_is_free(cluster, machines):
        return "messages or phases of a step take time"
    if cluster.machines and all(not _varies(machine) for machine in machines):
        return "machines differ in speed, and each always takes the same time"
    return ""


def _immortal(machines: Sequence[Machine]) -> bool:
    return all(math.isinf(machine.mean_time_between_failures_s) for machine in machines)


def _varies(machine: Machine) -> bool:
    return bool(machine.law == "exponential" or machine.sigma or machine.straggle_probability)


def _network_is_free(cluster: Cluster, machines: Sequence[Machine]) -> bool:
    times = (cluster.latency_s, cluster.message_s, cluster.service_s)
    bandwidths = [m.bandwidth_bytes_per_s for m in machines]
    unlimited = all(map(math.isinf, (*bandwidths, cluster.memory_bandwidth_bytes_per_s)))
    return unlimited and not (any(times) or cluster.links or cluster.outages)


def _known(method: downpour.Config, cluster: Cluster, run: Run, mean: float) -> Law:
    count, machine = method.replicas, cluster.machine
    if not cluster.machines and not _varies(machine):
        message = (
            f"Predicted staleness: always M - 1 = {count - 1} after the first round, since "
            "replicas take turns."
        )
        return Law(message, {count - 1: 1.0}, mean)
    memoryless = machine.law == "exponential" and not machine.straggle_probability
    if memoryless and method.n_push == 1 and not cluster.machines:
        message = (
            f"Predicted: the geometric distribution P(k) = (1/M)(1 - 1/M)^k for M = {count} "
            "replicas with exponential computation times."
        )
        return Law(message, geometric(count), mean)
    machines = [cluster.machine_of(replica_name(r)) for r in range(count)]
    assert isinstance(cluster.compute_s, float)
    horizon = run.end_s / cluster.compute_s
    return Law(
        f"The predicted mean is {_mean(method, mean)}. No closed form is known for these "
        f"computation times; the predicted distribution is that of M = {count} replicas that "
        f"work in parallel and do not slow each other down, from {_DRAWN:,} sampled pushes.",
        drawn(machines, method.n_push, horizon),
        mean,
    )


def _mean(method: downpour.Config, mean: float) -> str:
    if mean == method.replicas - 1:
        return f"M - 1 = {mean:g} if all M replicas are always computing"
    return f"M (n_fetch + 1) / 2 - 1 = {mean:g} for M equally fast replicas"


def geometric(count: int) -> dict[int, float]:
    """Returns the distribution for independent exponential computation times (proof 7).

    Args:
      count: the number of replicas.

    Returns:
      staleness -> probability, truncated where the remaining probability is below 1e-6.
    """
    stay = 1 - 1 / count
    last = math.ceil(math.log(1e-6) / math.log(stay)) if count > 1 else 0
    return {k: stay**k / count for k in range(last + 1)}


def drawn(
    machines: Sequence[Machine], steps: int, horizon: float, pushes: int = _DRAWN
) -> dict[int, float]:
    """Samples the distribution for independent replicas that start together.

    Args:
      machines: the machine of each replica.
      steps: the number of computations before each push.
      horizon: the length of the run, in computations of a machine of speed 1.
      pushes: the least number of pushes to sample.

    Returns:
      staleness -> share of the sampled pushes.
    """
    draws, found = np.random.default_rng(0), collections.Counter[int]()
    horizon = max(horizon, 2.0 * steps)
    while found.total() < pushes:
        times = [_push_times(machine, steps, horizon, draws) for machine in machines]
        who = np.repeat(np.arange(len(times)), [len(t) for t in times])
        who = who[np.argsort(np.concatenate(times), kind="stable")]
        for replica in range(len(times)):  # counts the pushes of others between its own
            turns = np.append(-1, np.flatnonzero(who == replica))
            found.update((np.diff(turns) - 1).tolist())
    total = found.total()
    return {k: times / total for k, times in sorted(found.items())}


def _push_times(
    machine: Machine, steps: int, horizon: float, draws: np.random.Generator
) -> Numbers:
    times = np.zeros(1)
    count = math.ceil(horizon * machine.speed / steps) + 16
    while times[-1] <= horizon:
        took = machine.factors(draws, (count, steps)).sum(axis=1) / machine.speed
        times = np.append(times, times[-1] + np.cumsum(took))
    return times[(times > 0) & (times <= horizon)]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of the histogram.

    Attributes:
      first: the lowest staleness in the bar, in updates.
      last: the highest staleness in the bar, in updates.
      count: the number of pushes.
      predicted: the predicted share of all pushes, or None if the distribution is unknown.
    """

    first: int
    last: int
    count: int
    predicted: float | None


def bars(histogram: Mapping[int, int], shares: Mapping[int, float] | None) -> list[Bar]:
    """Groups a histogram into bars of equal width; the last bar combines the rare, large values.

    Args:
      histogram: staleness -> number of pushes.
      shares: staleness -> predicted probability, or None.
    """
    total = sum(histogram.values())
    if not total:
        return []
    usual = max(_quantile(weights, 1 - _TAIL) for weights in (histogram, shares or {0: 1.0}))
    width = max(1, math.ceil((usual + 1) / _BARS))
    firsts = list(range(0, usual + 1, width))
    largest = max(histogram)
    if largest >= firsts[-1] + width:
        firsts.append(firsts[-1] + width)
    lasts = [first - 1 for first in firsts[1:]] + [max(largest, firsts[-1] + width - 1)]
    found = [_bar(histogram, shares, *ends) for ends in zip(firsts, lasts, strict=True)]
    if shares and largest > usual:  # include the predicted share beyond the largest value
        beyond = sum(p for k, p in shares.items() if k > lasts[-1])
        found[-1] = dataclasses.replace(found[-1], predicted=(found[-1].predicted or 0) + beyond)
    return found


def _quantile(weights: Mapping[int, float], share: float) -> int:
    least = share * sum(weights.values())
    seen = itertools.accumulate(weights[k] for k in sorted(weights))
    return next(k for k, sum_ in zip(sorted(weights), seen, strict=True) if sum_ >= least)


def _bar(
    histogram: Mapping[int, int], shares: Mapping[int, float] | None, first: int, last: int
) -> Bar:
    def within(of: Mapping[int, Any]) -> Any:
        return sum(value for k, value in of.items() if first <= k <= last)

    return Bar(first, last, within(histogram), None if shares is None else within(shares))
