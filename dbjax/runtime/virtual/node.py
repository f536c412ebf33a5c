"""A node of the virtual cluster, with the speed and the random durations of its machine."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from dbjax.arguments import require_finite
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.context import current, journaled
from dbjax.runtime.interface import Arrivals, Future, first_of, node_generator, ready, size_bytes
from dbjax.runtime.node_names import NodeKind, kind_of, service_name
from dbjax.runtime.step_time import PhasedStep
from dbjax.runtime.virtual.network import NetworkInterface
from dbjax.runtime.virtual.simulator import Simulator

_FACTORS_AHEAD = 256


@final
class VirtualNode:
    """A `Node` of the virtual cluster.

    Args:
      simulator: the simulator of the run.
      services: every service of the run, by name.
      name: the name of the node.
      observer: whether the node is outside the cluster, so that its calls and computations take no
        model time.

    Attributes:
      machine: the machine on which the node runs.
      interface: its connection to the network.
      memory_traffic_bytes: the bytes that the call being served has read and written so far,
        besides its arguments.
    """

    def __init__(
        self,
        simulator: Simulator,
        services: Mapping[str, Any],
        name: str,
        *,
        observer: bool = False,
    ) -> None:
        self.simulator, self._services = simulator, services
        self.name, self.observer = name, observer
        self.incarnation, self.returned = simulator.incarnation, False
        cluster = simulator.cluster
        self.machine = cluster.machine_of(name)
        is_replica = kind_of(service_name(name)) is NodeKind.REPLICA
        machines = cluster.replica_machines if is_replica else 1
        self.interface = NetworkInterface(name, self.machine, machines * self.machine.cards)
        self.memory_traffic_bytes = 0
        self._at = simulator.at_unnoticed if observer else simulator.at
        self._factors: list[float] = []  # of the next computations, the next one last
        self._factors_ahead = 1 if self._draws_only_factors() else 0  # how many to draw next

    @functools.cached_property
    def draws(self) -> np.random.Generator:
        """The generator of durations and failures; its seed is the cluster's, unlike `random`'s."""
        return node_generator(self.simulator.cluster.seed or 0, f"draws of {self.name}")

    def now(self) -> float:
        caller = current.caller
        time_s: float = caller.said(caller.observations.now(self.simulator.now_s))
        return time_s

    def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        journal = current.caller.journal
        if journal is None:
            return self._compute(fn, args, kwargs)
        return journal.given(self._compute, fn, args, kwargs)

    def _compute(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        simulator = self.simulator
        value = fn(*args, **kwargs)
        begin_s = simulator.now_s
        end_s = begin_s if self.observer else begin_s + self._duration_s(fn, args)
        if simulator.spans is not None and not self.observer:
            simulator.spans.span(self.name, "compute", begin_s, end_s)
        future: Future[Any] = Future("compute")
        self._at(end_s, future.set_result, value)
        return future

    def sleep(self, seconds: float) -> Future[None]:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"sleep({seconds!r}): needs a finite number of seconds, at least 0")
        return self._sleep(seconds)

    @journaled
    def _sleep(self, seconds: float) -> Future[None]:
        future: Future[None] = Future("sleep")
        self._at(self.simulator.now_s + seconds, future.set_result, None)
        return future

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        first = first_of(futures, None if timeout_s is None else self.sleep(timeout_s))
        return current.caller.observations.first(futures, first)

    def is_done(self, future: Future[Any]) -> Future[bool]:
        caller = current.caller
        done = caller.observations.is_done(future)
        return done if caller.journal is None else ready(caller.said(done.result()))

    def arrivals(self, label: object) -> Arrivals[Any]:
        return current.caller.observations.arrivals(label)

    def random(self) -> np.random.Generator:
        self.simulator.randomness = True
        return node_generator(self.simulator.seed, self.name, self.incarnation)

    def record(self, **values: Any) -> None:
        if self.simulator.trace is not None:
            self.simulator.trace.record(self.name, self.simulator.now_s, values)

    def service(self, name: str) -> Any:
        return self._services[name]

    def save_progress(self, state: Any) -> None:
        journal = current.caller.journal
        if journal is not None:
            journal.keep(state)

    def saved_progress(self) -> Any:
        journal = current.caller.journal
        return None if journal is None else journal.kept

    def come_back(self) -> None:
        """Starts the next incarnation of the node, after a failure."""
        self.incarnation += 1
        self.returned = True

    def count_memory_traffic(self, arrays: Any) -> None:
        self.memory_traffic_bytes += size_bytes(arrays)

    def _duration_s(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
        machine, cluster = self.machine, self.simulator.cluster
        compute_s = cluster.compute_s
        cost: Any = compute_s
        if callable(compute_s):
            cost = compute_s(fn, args)
            if isinstance(cost, PhasedStep):
                return cost.draw_s(machine, cluster, self.draws)
            require_finite("what Cluster.compute_s returned", cost)
        return float(cost / machine.speed * self._factor())

    def _factor(self) -> float:
        """Draws the factor by which the time of the next computation differs from its mean.

        NumPy draws many at once far faster than one by one, and the same ones.
        """
        if not self._factors_ahead:
            return float(self.machine.factors(self.draws))
        if not self._factors:
            self._factors = self.machine.factors(self.draws, (self._factors_ahead,))[::-1].tolist()
            self._factors_ahead = min(2 * self._factors_ahead, _FACTORS_AHEAD)
        return self._factors.pop()

    def _draws_only_factors(self) -> bool:
        """Returns whether `draws` is used for nothing but one factor for each computation."""
        machine = self.machine
        if callable(self.simulator.cluster.compute_s) or machine.straggle_probability:
            return False
        return math.isinf(machine.mean_time_between_failures_s + machine.mean_time_to_repair_s)


def service_time_s(cluster: Cluster, size: float) -> float:
    """Returns how many seconds a service takes for a call that reads or writes `size` bytes."""
    return cluster.service_s + size * cluster.size_scale / cluster.memory_bandwidth_bytes_per_s
