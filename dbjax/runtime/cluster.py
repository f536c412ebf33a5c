"""A description of machines, network and failures: all that virtual time is made of."""

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
    """A cut of the network between `a` and `b`, both ways, from `at_s` until it heals.

    What is sent meanwhile is held back and goes on when the cut heals, in order: nothing is lost,
    and nothing that is sent later overtakes it, as with TCP. What was sent before arrives.

    Attributes:
      a, b: node names, or patterns such as "replica/*".
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
                f"back_s={self.back_s!r} < inf; a node that is gone for good is a Failure"
            )


@dataclasses.dataclass(frozen=True)
class Link:
    """The network between `a` and `b`, both ways, where it is another than elsewhere.

    Attributes:
      a, b: node names, or patterns such as "replica/*".
      latency_s: from the sender's card to the receiver's; None: `Cluster.latency_s`.
      duplicate_probability: chance that the network delivers a message twice. The receiver
        drops the second, which costs its card the time of a message.
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
    """Whether it is between these nodes."""
    here, there = matches(way.a, one), matches(way.b, other)
    return (here and there) or (matches(way.a, other) and matches(way.b, one))


def matches(pattern: str, name: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


Law = Literal["constant", "lognormal", "exponential"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """One machine and its full-duplex network cards; a rack of them, with many cards.

    Attributes:
      speed: relative to the machine for which `Cluster.compute_s` is given.
      law: how the time of a computation varies; the factor has mean 1.
      sigma: standard deviation of the logarithm of the factor (law "lognormal").
      straggle_probability: chance that one computation is slower by `straggle_factor`.
      flops_per_s: of a machine of speed 1; only `Cluster.compute_s` "costs" asks for it.
      memory_bandwidth_bytes_per_s: of a computation's memory traffic, likewise.
      bandwidth_bytes_per_s: of a card, each way; each way serves one transfer at a time.
      cards: dealt out to the other nodes in order of first contact; each talks over one of them.
      mean_time_between_failures_s: exponentially distributed; infinite: never fails.
      mean_time_to_repair_s: exponentially distributed; infinite: never comes back.
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
        """By how much computations take longer than in the mean, drawn; a number if no shape."""
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
    """A scheduled death: `node` dies at `at_s` and comes back at `back_s`, if ever."""

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
    """Machines, links and their speeds. Times in seconds, sizes in bytes.

    Attributes:
      compute_s: time of one `Node.compute` on a machine of speed 1: a number; a function of
        (fn, args) returning one, or a `PhasedStep`; or "costs": what the compiled program
        costs on machines of `flops_per_s` (`dbjax.costs.speedup`).
      machine: what every node runs on, unless `machines` says otherwise.
      machines: node name, or pattern such as "replica/1*", to Machine; the first match counts.
      latency_s: from the sender's card to the receiver's.
      message_s: what a message costs a machine of a replica that is cut over several, besides
        its time on the wire.
      service_s: time a service takes for any call, besides the memory traffic of its arguments.
      memory_bandwidth_bytes_per_s: at which a service reads the arrays it is sent.
      size_scale: how many bytes travel for each byte of the arrays: above 1, the clock
        models a larger network than the numerics use, and figures must say so.
      replica_machines: how many a replica is cut over; each has cards of its own. `dbjax.run`
        takes it from the task.
      failures: scheduled deaths of nodes that run a main, or a service that may die.
      outages: cuts of the network between nodes; each heals.
      links: between nodes where the network is another; the first match counts.
      seed: of every drawn duration, failure and duplicate; None: that of the run.
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
        """Whether nodes may die, as scheduled or drawn, or be killed and come back."""
        machines = (self.machine, *self.machines.values())
        drawn = any(
            math.isfinite(time_s)
            for m in machines
            for time_s in (m.mean_time_between_failures_s, m.mean_time_to_repair_s)
        )
        return drawn or bool(self.failures)

    def seeded(self, seed: int) -> Cluster:
        """The same cluster; with that seed, if it has none of its own."""
        return self if self.seed is not None else dataclasses.replace(self, seed=seed)

    def machine_of(self, name: str) -> Machine:
        """The machine that the node of that name runs on."""
        for pattern, machine in self.machines.items():
            if matches(pattern, name):
                return machine
        return self.machine
