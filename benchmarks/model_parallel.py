"""(h) A network sharded over 2 devices on 2 cores: measured time compared with the prediction.

The prediction uses the costs of the compiled programs, the speed at which a core computes the whole
network while the other core is equally busy, and the cost of an exchange between two devices.
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
BUSY = "whole, one core, the other equally busy"


def run(rounds: int) -> list[Measured]:
    """Measures part (h); see `benchmarks.run`."""
    cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
    if len(cores) < 2:
        return [Measured("(h) needs two cores", "ms", {})]
    return [measured(network, cores, rounds) for network in NETWORKS]


def measured(network: str, cores: tuple[int, ...], rounds: int) -> Measured:
    """Measures one network, whole and in each of its shardings.

    Args:
      network: a key of `NETWORKS`.
      cores: the numbers of two cores.
      rounds: the number of measurements of each case.
    """
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
        } | {f"sharded ({how}), 2 devices": running[how].case(STEPS) for how in SHARDINGS[network]}
        title = f"(h) gradient of {network}, mini-batch {NETWORKS[network][2]}"
        bounds = {f"sharded ({how}), 2 devices": "<= 1" for how in SHARDINGS[network]}
        found = in_turn(title, "ms", cases, rounds, bounds)
    median = {name: statistics.median(numbers) for name, numbers in found.numbers.items()}
    notes = {
        f"sharded ({how})": _words(
            prediction_ms(one.step, running[how].step, running[how].exchange, median[BUSY]),
            median[f"sharded ({how}), 2 devices"],
            median["whole, one core"],
        )
        for how in SHARDINGS[network]
    }
    return dataclasses.replace(found, notes=notes)


def at_once(one: Child, other: Child) -> float:
    """Milliseconds of a step while two processes take steps at the same time, on a core each."""
    one.begin(STEPS)
    other.begin(STEPS)
    return (one.end() + other.end()) / 2


def prediction_ms(
    whole: PhasedStep, cut: PhasedStep, exchange: Mapping[str, float], busy_ms: float
) -> float:
    """Predicts the milliseconds of a step on several devices, by the method of Figure 3.

    Args:
      whole: the costs of the network on one device.
      cut: the costs of the sharded network on each of several devices.
      exchange: "latency_s" and "bandwidth_bytes_per_s" between the devices.
      busy_ms: milliseconds of a step of the whole network on one core while all other cores are
        equally busy.
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
