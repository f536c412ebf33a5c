"""(h) One network cut over 2 devices, on 2 cores: measured beside predicted.

The prediction knows what the compiled programs cost, how fast a core computes the whole network
while the other core is busy too, and what an exchange between two devices costs by itself.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping

from benchmarks.measure import Measured, in_turn
from benchmarks.step_time import NETWORKS, Child, children
from dbjax.runtime.cluster import Cluster, Machine
from dbjax.runtime.step_time import PhasedStep

SHARDINGS = {"speech 42 M": ("units", "alternating"), "small vision": ("tiles",)}
STEPS = 8
BUSY = "whole, one core, the other as busy"


def run(rounds: int) -> list[Measured]:
    cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
    if len(cores) < 2:
        return [Measured("(h) needs two cores", "ms", {})]
    return [measured(network, cores, rounds) for network in NETWORKS]


def measured(network: str, cores: tuple[int, ...], rounds: int) -> Measured:
    first, second = ((core,) for core in cores)
    kinds = {
        "both": (network, cores),
        "one": (network, first),
        "other": (network, second),
    } | {how: (network, cores, 2, how) for how in SHARDINGS[network]}
    with children(**kinds) as running:
        both, one, other = (running[name] for name in ("both", "one", "other"))
        cases = {
            "whole, both cores": both.case(STEPS),
            "whole, one core": one.case(STEPS),
            BUSY: lambda: at_once(one, other),
        } | {f"cut ({how}), 2 devices": running[how].case(STEPS) for how in SHARDINGS[network]}
        title = f"(h) gradient of {network}, mini-batch {NETWORKS[network][2]}"
        bounds = {f"cut ({how}), 2 devices": "<= 1" for how in SHARDINGS[network]}
        found = in_turn(title, "ms", cases, rounds, bounds)
    median = {name: statistics.median(numbers) for name, numbers in found.numbers.items()}
    notes = {
        f"cut ({how})": _words(
            prediction_ms(one.step, running[how].step, running[how].exchange, median[BUSY]),
            median[f"cut ({how}), 2 devices"],
            median["whole, one core"],
        )
        for how in SHARDINGS[network]
    }
    return dataclasses.replace(found, notes=notes)


def at_once(one: Child, other: Child) -> float:
    """Milliseconds of a step, while two processes take steps on a core each."""
    one.begin(STEPS)
    other.begin(STEPS)
    return (one.end() + other.end()) / 2


def prediction_ms(
    whole: PhasedStep, cut: PhasedStep, exchange: Mapping[str, float], busy_ms: float
) -> float:
    """Of a step over several devices, as Figure 3 predicts them.

    Args:
      whole: what the network costs on one device.
      cut: what it costs each of several.
      exchange: latency and bandwidth between them.
      busy_ms: a step of the whole network on one core, while the others are as busy.
    """
    flops = sum(phase.repeats * phase.flops for phase in whole.phases)
    core = Machine(
        flops_per_s=flops / (busy_ms / 1e3),
        bandwidth_bytes_per_s=exchange["bandwidth_bytes_per_s"],
    )
    return 1e3 * cut.bounds(Cluster(machine=core, latency_s=exchange["latency_s"])).upper_s


def _words(predicted_ms: float, measured_ms: float, alone_ms: float) -> str:
    return (
        f"predicted {predicted_ms:.1f} ms, measured {measured_ms:.1f} "
        f"({predicted_ms / measured_ms - 1:+.0%}); speed-up over one device on one core: "
        f"predicted {alone_ms / predicted_ms:.2f}, measured {alone_ms / measured_ms:.2f}"
    )
