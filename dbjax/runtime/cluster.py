"""Describes the machines, network and failures of a virtual cluster."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from dbjax.arguments import (
    require_at_least,
    require_fields,
    require_finite,
    require_positive,
    require_positive_or_infinite,
    require_probability,
    require_seed,
)


@dataclasses.dataclass(frozen=True)
class Outage:
    """A network partition between `a` and `b`, in both directions, from `at_s` to `back_s`.

    Messages sent during the outage are held back, and delivered in order after it ends: as with
    TCP, nothing is lost, and nothing sent later overtakes them. Messages sent before the outage
    arrive as usual.

    Attributes:
      a: the name of a node, or a pattern such as "replica/*".
      b: likewise, for the other side.
      at_s: when the outage begins, in seconds on the run's clock.
      back_s: when the outage ends, in seconds on the run's clock; finite.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    a: str
    b: str
    at_s: float
    back_s: float

    def __post_init__(self) -> None:
        require_fields("Outage", self)
        if not 0 <= self.at_s < self.back_s < math.inf:
            raise ValueError(
                f"Outage between {self.a} and {self.b}: needs 0 <= at_s={self.at_s!r} < "
                f"back_s={self.back_s!r} < inf; use a Failure for a node that never comes back"
            )


@dataclasses.dataclass(frozen=True)
class Link:
    """The network between `a` and `b`, in both directions, if it differs from the rest.

    Attributes:
      a: the name of a node, or a pattern such as "replica/*".
      b: likewise, for the other side.
      latency_s: the latency from the sender's card to the receiver's, in seconds; None:
        `Cluster.latency_s`.
      duplicate_probability: the probability that the network delivers a message twice. The
        receiver drops the second copy, but its network card spends the time to receive it.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    a: str
    b: str
    latency_s: float | None = None
    duplicate_probability: float = 0.0

    def __post_init__(self) -> None:
        require_fields("Link", self)
        between = f"Link between {self.a} and {self.b}"
        if self.latency_s is not None:
            require_finite(f"{between}: latency_s", self.latency_s)
        require_probability(f"{between}: duplicate_probability", self.duplicate_probability)


def joins(way: Outage | Link, one: str, other: str) -> bool:
    """Returns whether an outage or a link is between these two nodes, in either direction."""
    here, there = matches(way.a, one), matches(way.b, other)
    return (here and there) or (matches(way.a, other) and matches(way.b, one))


def matches(pattern: str, name: str) -> bool:
    """Returns whether a node's name equals the pattern, or matches it as a shell would."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


Law = Literal["constant", "lognormal", "exponential"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine with its full-duplex network cards. With many cards it models a rack of machines.

    Attributes:
      speed: the speed relative to the machine for which `Cluster.compute_s` is given.
      law: the probability distribution of the factor, of mean 1, by which the time of each
        computation varies.
      sigma: the standard deviation of the logarithm of that factor, for the law "lognormal".
      straggle_probability: the probability that a computation takes `straggle_factor` times as
        long.
      straggle_factor: the factor by which the time of a straggling computation is multiplied.
      flops_per_s: the floating-point operations per second of a machine of speed 1; used only
        where `Cluster.compute_s` is "costs" or returns a `PhasedStep`.
      memory_bandwidth_bytes_per_s: the memory bandwidth available to computations; likewise.
      bandwidth_bytes_per_s: the bandwidth of a network card in each direction. Each direction
        serves one transfer at a time.
      cards: the number of network cards. They are assigned to the other nodes in turn, in order of
        first contact; each of these nodes communicates over its one card.
      mean_time_between_failures_s: the mean of the exponentially distributed time between
        failures; infinite: the machine never fails.
      mean_time_to_repair_s: the mean of the exponentially distributed time until a failed machine
        comes back; infinite: it never comes back.

    Raises:
      ValueError: an attribute has a wrong value, or has no effect.
    """

    speed: float = 1.0
    law: Law = "constant"
    sigma: float = 0.0
    straggle_probability: float = 0.0
    straggle_factor: float = 1.0
    flops_per_s: float = math.inf
    memory_bandwidth_bytes_per_s: float = math.inf
    bandwidth_bytes_per_s: float = math.inf
    cards: int = 1
    mean_time_between_failures_s: float = math.inf
    mean_time_to_repair_s: float = math.inf

    def __post_init__(self) -> None:
        require_fields("Machine", self)
        for field in (
            "speed",
            "flops_per_s",
            "memory_bandwidth_bytes_per_s",
            "bandwidth_bytes_per_s",
            "mean_time_between_failures_s",
            "mean_time_to_repair_s",
        ):
            require_positive_or_infinite(f"Machine.{field}", getattr(self, field))
        require_at_least("Machine", 1, cards=self.cards)
        require_finite("Machine.sigma", self.sigma)
        if self.sigma and self.law != "lognormal":
            raise ValueError(f"Machine.sigma={self.sigma!r} has no effect: set law='lognormal'")
        require_probability("Machine.straggle_probability", self.straggle_probability)
        require_positive("Machine.straggle_factor", self.straggle_factor)
        if (self.straggle_probability > 0) != (self.straggle_factor != 1):
            raise ValueError(
                f"Machine.straggle_probability={self.straggle_probability!r} has no effect with "
                f"straggle_factor={self.straggle_factor!r}: set both, or neither"
            )

    def factors(self, draws: np.random.Generator, shape: tuple[int, ...] | None = None) -> Any:
        """Draws the factors by which the times of computations differ from their mean.

        Args:
          draws: the random generator.
          shape: the shape of the array to return; None: returns a number.
        """
        factors: Any = 1.0 if shape is None else np.ones(shape)
        if self.law == "lognormal":
            factors = draws.lognormal(-0.5 * self.sigma**2, self.sigma, shape)  # of mean 1
        elif self.law == "exponential":
            factors = draws.standard_exponential(shape)
        if self.straggle_probability:
            straggling = draws.random(shape) < self.straggle_probability
            factors = factors * np.where(straggling, self.straggle_factor, 1.0)
        return factors


@dataclasses.dataclass(frozen=True)
class Failure:
    """A scheduled failure of a node.

    Attributes:
      node: the name of the node.
      at_s: when the node fails, in seconds on the run's clock.
      back_s: when the node comes back, in seconds on the run's clock; infinite: never.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    node: str
    at_s: float
    back_s: float = math.inf

    def __post_init__(self) -> None:
        require_fields("Failure", self)
        if not 0 <= self.at_s < self.back_s:
            raise ValueError(
                f"Failure of {self.node}: needs 0 <= at_s={self.at_s!r} < back_s={self.back_s!r}"
            )


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines, network and failures of a virtual cluster.

    Times are in seconds of virtual time, sizes in bytes.

    Attributes:
      compute_s: the time of one `Node.compute` on a machine of speed 1. It is a number; or a
        function of (fn, args) that returns a number or a `PhasedStep`; or "costs", which computes
        the time from the costs of the compiled program on machines of `flops_per_s`
        (`dbjax.costs.speedup`).
      machine: the machine of every node that `machines` does not mention.
      machines: the machines of particular nodes, by the node's name or a pattern such as
        "replica/1*"; the first match counts.
      latency_s: the latency from the sender's network card to the receiver's.
      message_s: the time that a message costs its sender, besides the time on the wire, where a
        replica is partitioned over several machines.
      service_s: the time that a service takes for any call, besides the memory traffic of its
        arguments.
      memory_bandwidth_bytes_per_s: the bandwidth at which a service reads the arrays it receives.
      size_scale: how many bytes the clock counts for each byte of an array. Above 1, the clock
        models a larger network than the one that is trained, and figures must say so.
      replica_machines: the number of machines over which each replica is partitioned; each has its
        own network cards. `dbjax.run` takes it from the task.
      failures: the scheduled failures of nodes that run a process or a service.
      outages: the network partitions between nodes; each ends.
      links: the pairs of nodes between which the network differs; the first match counts.
      seed: the seed of every drawn duration, failure and duplicate; None: the seed of the run.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    compute_s: float | Literal["costs"] | Callable[[Callable[..., Any], tuple[Any, ...]], Any] = 1.0
    machine: Machine = Machine()
    machines: Mapping[str, Machine] = dataclasses.field(default_factory=dict)
    latency_s: float = 0.0
    message_s: float = 0.0
    service_s: float = 0.0
    memory_bandwidth_bytes_per_s: float = math.inf
    size_scale: float = 1.0
    replica_machines: int = 1
    failures: tuple[Failure, ...] = ()
    outages: tuple[Outage, ...] = ()
    links: tuple[Link, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.compute_s) and self.compute_s != "costs":
            require_finite("Cluster.compute_s", self.compute_s, ", or 'costs'")
        require_fields("Cluster", self)
        for field in ("latency_s", "message_s", "service_s"):
            require_finite(f"Cluster.{field}", getattr(self, field))
        bandwidth = self.memory_bandwidth_bytes_per_s
        require_positive_or_infinite("Cluster.memory_bandwidth_bytes_per_s", bandwidth)
        require_positive("Cluster.size_scale", self.size_scale)
        require_at_least("Cluster", 1, replica_machines=self.replica_machines)
        if self.seed is not None:
            require_seed("Cluster.seed", self.seed)
        self._check_compute_s()

    def _check_compute_s(self) -> None:
        if self.compute_s == "costs":
            for name, machine in {"machine": self.machine, **self.machines}.items():
                if math.isinf(machine.flops_per_s):
                    raise ValueError(
                        f"Cluster.compute_s='costs' needs every machine's speed: set flops_per_s "
                        f"of {name!r}"
                    )

    @property
    def nodes_can_fail(self) -> bool:
        """Whether nodes may fail, as scheduled or at random, or come back after they are killed."""
        machines = (self.machine, *self.machines.values())
        drawn = any(
            math.isfinite(time_s)
            for m in machines
            for time_s in (m.mean_time_between_failures_s, m.mean_time_to_repair_s)
        )
        return drawn or bool(self.failures)

    def seeded(self, seed: int) -> Cluster:
        """Returns the same cluster with this seed, or the cluster itself if it has its own seed."""
        return self if self.seed is not None else dataclasses.replace(self, seed=seed)

    def machine_of(self, name: str) -> Machine:
        """Returns the machine on which the node of that name runs."""
        for pattern, machine in self.machines.items():
            if matches(pattern, name):
                return machine
        return self.machine
