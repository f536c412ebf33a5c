"""How long a step takes that several machines compute together, in phases.

Within a phase each machine computes by itself. Then the machines exchange data, and continue when
they have what they need. So the slowest machine determines the time of a phase: "the typical cause
of less-than-ideal speedups is variance in processing times" (Dean et al. 2012, section 3).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from dbjax.runtime.cluster import Cluster, Machine


@dataclasses.dataclass(frozen=True)
class Phase:
    """What one machine computes in a phase of a step, and what it then exchanges with others.

    Attributes:
      flops: the number of floating-point operations.
      bytes: the memory traffic of the computation, in bytes.
      rounds: the number of rounds of messages, each of which waits for the one before; each adds
        the latency.
      messages: the number of messages that the machine sends.
      sent_bytes: the size of all these messages together.
      repeats: how often the phase is repeated.
    """

    flops: float = 0.0
    bytes: float = 0.0
    rounds: int = 0
    messages: int = 0
    sent_bytes: float = 0.0
    repeats: int = 1

    def compute_s(self, machine: Machine) -> float:
        """Returns the seconds that a machine computes, without variation.

        Either arithmetic or memory traffic is the limit.
        """
        arithmetic_s = self.flops / machine.flops_per_s
        memory_s = self.bytes / machine.memory_bandwidth_bytes_per_s
        return max(arithmetic_s, memory_s) / machine.speed

    def exchange_s(self, machine: Machine, cluster: Cluster) -> float:
        """Returns the seconds of an exchange.

        They are the sum of the latencies, of what each message costs its sender, and of the time
        on the sender's network card.
        """
        wire_s = self.sent_bytes * cluster.size_scale / machine.bandwidth_bytes_per_s
        return self.rounds * cluster.latency_s + self.messages * cluster.message_s + wire_s


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of the mean time of a step, in seconds.

    Attributes:
      lower_s: the time if communication and computation overlap completely, and no machine waits
        for a slower one.
      upper_s: the time if nothing overlaps, and each phase takes as long as its slowest machine.
    """

    lower_s: float
    upper_s: float


@dataclasses.dataclass(frozen=True)
class PhasedStep:
    """A step that several machines compute together.

    Attributes:
      machines: the number of machines.
      phases: the phases of the step, in order; every machine does the same work.
    """

    machines: int
    phases: tuple[Phase, ...]

    def bounds(self, cluster: Cluster) -> Bounds:
        """Returns the bounds of the mean time on machines like `cluster.machine`."""
        machine = cluster.machine
        compute_s = sum(p.repeats * p.compute_s(machine) for p in self.phases)
        exchange_s = sum(p.repeats * p.exchange_s(machine, cluster) for p in self.phases)
        one, slowest = (slowest_factor(machine, n) for n in (1, self.machines))
        return Bounds(max(compute_s * one, exchange_s), compute_s * slowest + exchange_s)

    def draw_s(self, machine: Machine, cluster: Cluster, draws: np.random.Generator) -> float:
        """Draws the time of one step in seconds, without overlap.

        In each phase it draws the factors of all machines, of which the largest counts.
        """
        total_s = 0.0
        for phase in self.phases:
            factors = machine.factors(draws, (phase.repeats, self.machines))
            slowest = float(np.sum(np.max(factors, axis=1)))
            exchange_s = phase.repeats * phase.exchange_s(machine, cluster)
            total_s += phase.compute_s(machine) * slowest + exchange_s
        return total_s


def slowest_factor(machine: Machine, machines: int) -> float:
    """Computes the mean of the largest of the factors by which `machines` computations vary.

    It is the integral of 1 - P(x)^machines over x > 0, where P is the cumulative distribution of
    one factor.
    """
    varies = Machine(
        law=machine.law,
        sigma=machine.sigma,
        straggle_probability=machine.straggle_probability,
        straggle_factor=machine.straggle_factor,
    )
    return _slowest_factor(varies, machines)


@functools.lru_cache(maxsize=256)
def _slowest_factor(machine: Machine, machines: int) -> float:
    """Computes `slowest_factor` for a machine whose speeds have their defaults.

    Fitting the speeds asks for the same factor thousands of times, so it is cached without them.
    """
    chance, factor = machine.straggle_probability, machine.straggle_factor
    if machines == 1:
        return 1 + chance * (factor - 1)  # every law has mean 1
    if machine.law == "constant" or (machine.law == "lognormal" and machine.sigma == 0):
        all_alike = chance**machines if factor < 1 else 1 - (1 - chance) ** machines
        return 1 + (factor - 1) * all_alike
    x = np.geomspace(1e-9, 1e9 * max(1.0, factor), 40_001)
    below = (1 - chance) * _below(machine, x) + chance * _below(machine, x / factor)
    return float(x[0] + np.trapezoid((1 - below**machines) * x, np.log(x)))


def _below(machine: Machine, x: Any) -> Any:
    """Returns the probability of a factor below x for a computation that does not straggle."""
    if machine.law == "exponential":
        return 1 - np.exp(-x)
    z = (np.log(x) + 0.5 * machine.sigma**2) / machine.sigma
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
