"""Speed-ups computed from costs: the rows of the CSV file, and the paper's claims."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dbjax.costs.program import Costs
from dbjax.costs.speedup import predicted
from dbjax.runtime.cluster import Cluster
from experiments.claims import Claim, verdict
from experiments.figure3.calibration import AT, BEST, calibrated, speedup
from experiments.figure3.networks import SPEECH, VISION_1700M, Point

SIGMAS = (0.0, 0.1, 0.2, 0.4)
BANDWIDTHS = (125e6, 1_250e6)  # bytes per second: cards of 1 and 10 Gb/s
PAPER_VISION, PAPER_MACHINES = 12.0, 81


def rows(points: Sequence[Point], clusters: Mapping[str, Cluster]) -> list[dict[str, Any]]:
    """Returns one row per network, number of machines and cluster."""
    whole = {p.network: p.costs for p in points if p.machines == 1}
    return [
        _row(point, whole[point.network], name, cluster)
        for name, cluster in clusters.items()
        for point in points
    ]


def _row(point: Point, whole: Costs, name: str, cluster: Cluster) -> dict[str, Any]:
    time, alone = predicted(point.costs, cluster), predicted(whole, cluster)
    return {
        "network": point.network,
        "parameters": point.parameters,
        "cluster": name,
        "machines": point.machines,
        "speedup": alone.upper_s / time.upper_s,
        "speedup_if_overlapped": alone.upper_s / time.lower_s,
        "step_s": time.upper_s,
        "step_if_overlapped_s": time.lower_s,
        "flops_per_machine": point.costs.flops,
        "flops_over_ideal": point.costs.flops * point.machines / whole.flops,
        "sent_bytes_per_machine": point.costs.sent_bytes,
        "rounds": point.costs.rounds,
        "argument_bytes_per_machine": point.costs.memory.argument_bytes,
        "temporary_bytes_per_machine": point.costs.memory.temporary_bytes,
    }


def by_machines(points: Sequence[Point], network: str) -> dict[int, Costs]:
    """Returns number of machines -> costs, for one network."""
    return {p.machines: p.costs for p in points if p.network == network}


def under_other_assumptions(points: Sequence[Point], assumed: Cluster) -> dict[str, list[float]]:
    """Predicts speed-ups under other assumptions, refitting the cluster for each.

    Args:
      points: the costs of all networks.
      assumed: the cluster whose variation and bandwidth are replaced by each of `SIGMAS` and
        `BANDWIDTHS`.

    Returns:
      network -> its speed-ups, on the largest number of machines up to the paper's 81.
    """
    speech = by_machines(points, SPEECH)
    found: dict[str, list[float]] = {}
    for sigma, bandwidth in itertools.product(SIGMAS, BANDWIDTHS):
        machine = dataclasses.replace(assumed.machine, sigma=sigma, bandwidth_bytes_per_s=bandwidth)
        cluster = calibrated(speech, dataclasses.replace(assumed, machine=machine))
        for network in {p.network: None for p in points}:
            costs = by_machines(points, network)
            most = max(n for n in costs if n <= PAPER_MACHINES)
            found.setdefault(network, []).append(speedup(costs, most, cluster))
    return found


def claims(
    points: Sequence[Point], cluster: Cluster, ranges: Mapping[str, list[float]]
) -> list[Claim]:
    """Compares what section 5 of the paper says about Figure 3 with the compiled programs.

    Args:
      points: the costs of all networks.
      cluster: the fitted cluster.
      ranges: network -> speed-ups under other assumptions.
    """
    curves = {
        network: {n: speedup(costs, n, cluster) for n in costs}
        for network in {p.network: None for p in points}
        for costs in [by_machines(points, network)]
    }
    speech = curves.pop(SPEECH)
    best = max(speech, key=lambda n: speech[n])
    most = max(speech)
    found = [
        Claim(
            f"speech: {BEST} times faster on {AT} machines, its best",
            f"{speech[AT]:.2f} on {AT}, best on {best}",
            "fitted",
        ),
        Claim(
            "speech: more machines slow it down",
            f"{speech[16]:.2f} on 16, {speech[most]:.2f} on {most}",
            verdict([all(speech[n] < speech[AT] for n in speech if n > AT)]),
        ),
    ]
    sizes = {p.network: p.parameters for p in points}
    order = sorted(curves, key=lambda network: sizes[network])
    if len(order) > 1:
        at = max(set.intersection(*(set(c) for c in curves.values())) - {128})
        values = [curves[network][at] for network in order]
        found.append(
            Claim(
                "images: the larger the network, the more it gains",
                ", ".join(f"{n} {v:.1f}" for n, v in zip(order, values, strict=True)) + f" on {at}",
                verdict([values == sorted(values)]),
            )
        )
    found += [_goes_on(network, curves[network]) for network in order]
    if VISION_1700M in curves:
        found.append(_more_than_twelve(curves[VISION_1700M], ranges[VISION_1700M]))
    return found


def _goes_on(network: str, curve: Mapping[int, float]) -> Claim:
    best = max(curve, key=lambda n: curve[n])
    shares = [curve[n] / n for n in sorted(curve)]  # of the ideal
    return Claim(
        f"{network}: keeps gaining up to {max(curve)} machines, with diminishing returns",
        f"best on {best}: {curve[best]:.1f}"
        + (f"; {curve[max(curve)]:.1f} on {max(curve)}" if best != max(curve) else ""),
        verdict([best == max(curve) and shares == sorted(shares, reverse=True)]),
    )


def _more_than_twelve(curve: Mapping[int, float], range_: list[float]) -> Claim:
    at = max(n for n in curve if n <= PAPER_MACHINES)
    return Claim(
        f"{VISION_1700M}: more than {PAPER_VISION:.0f} times faster on {PAPER_MACHINES} machines",
        f"{curve[at]:.1f} on {at}; {min(range_):.1f} to {max(range_):.1f} under other assumptions",
        verdict([curve[at] > PAPER_VISION]),
    )
