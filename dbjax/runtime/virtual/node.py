"""A machine of the virtual cluster: its cards, its speed, its random durations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from dbjax.runtime.cluster import Cluster, Machine
from dbjax.runtime.context import current
from dbjax.runtime.interface import Arrivals, Future, first_of, node_generator, ready
from dbjax.runtime.message_size import size_bytes
from dbjax.runtime.quantities import require_finite
from dbjax.runtime.step_time import PhasedStep

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class NetworkCard:
    """One of the network cards of a node that has several."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.egress_free_s, self.ingress_free_s = 0.0, -1.0
        self.egress_busy_s = self.ingress_busy_s = 0.0


@final
class VirtualNode:
    """A `Node`; an observer's calls and sleeps cost the modelled cluster nothing."""

    def __init__(self, runtime: VirtualRuntime, name: str, *, observer: bool = False) -> None:
        self.runtime, self.name, self.observer = runtime, name, observer
        self.incarnation, self.returned = runtime.incarnation, False
        self.machine = runtime.cluster.machine_of(name)
        self.egress_free_s = 0.0  # when the card's sending side has sent all it was given
        self.memory_traffic_bytes = 0  # by the call being served
        self.ingress_free_s = -1.0  # when its receiving side has received all that came
        self.egress_busy_s = self.ingress_busy_s = 0.0  # in all, up to those moments
        machines = runtime.cluster.replica_machines if name.startswith("replica/") else 1
        cards = machines * self.machine.cards  # a node that has one is its own card
        self.cards = [NetworkCard(name, self.machine) for _ in range(cards)] if cards > 1 else []
        self._card_of: dict[str, NetworkCard] = {}

    @functools.cached_property
    def draws(self) -> np.random.Generator:
        """Durations and failures: seeded by the cluster, apart from `random`."""
        return node_generator(self.runtime.cluster.seed or 0, f"draws of {self.name}")

    def now(self) -> float:
        caller = current.caller
        time_s = caller.observations.now(self.runtime.now_s)
        if caller.journal is not None:
            time_s = caller.journal.said(time_s)
        return time_s

    def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        journal = current.caller.journal
        if journal is not None:
            return journal.given(self.compute, fn, *args, **kwargs)
        runtime = self.runtime
        value = fn(*args, **kwargs)
        begin_s = runtime.now_s
        end_s = begin_s if self.observer else begin_s + self._duration_s(fn, args)
        if runtime.trace is not None and not self.observer:
            runtime.trace.span(self.name, "compute", begin_s, end_s)
        future: Future[Any] = Future("compute")
        runtime.at(end_s, future.set_result, value, unnoticed=self.observer)
        return future

    def sleep(self, seconds: float) -> Future[None]:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"sleep({seconds!r}): needs a finite number of seconds, at least 0")
        journal = current.caller.journal
        if journal is not None:
            return journal.given(self.sleep, seconds)
        future: Future[None] = Future("sleep")
        time_s = self.runtime.now_s + seconds
        self.runtime.at(time_s, future.set_result, None, unnoticed=self.observer)
        return future

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        first = first_of(futures, None if timeout_s is None else self.sleep(timeout_s))
        return current.caller.observations.first(futures, first)

    def is_done(self, future: Future[Any]) -> Future[bool]:
        caller = current.caller
        is_done = caller.observations.is_done(future)
        return is_done if caller.journal is None else ready(caller.journal.said(is_done.result()))

    def arrivals(self, label: object) -> Arrivals[Any]:
        return current.caller.observations.arrivals(label)

    def random(self) -> np.random.Generator:
        return node_generator(self.runtime.seed, self.name, self.incarnation)

    def record(self, **values: Any) -> None:
        if self.runtime.trace is not None:
            self.runtime.trace.record(self.name, self.runtime.now_s, values)

    def service(self, name: str) -> Any:
        return self.runtime.services[name]

    def saved(self, name: str) -> Any:
        journal, saved = current.caller.journal, self.runtime.saved.get(name)
        return saved if journal is None else journal.said(saved)

    def save_progress(self, state: Any) -> None:
        journal = current.caller.journal
        if journal is not None:
            journal.keep(state)

    def saved_progress(self) -> Any:
        journal = current.caller.journal
        return None if journal is None else journal.kept

    def come_back(self) -> None:
        """From the dead."""
        self.incarnation += 1
        self.returned = True

    def count_memory_traffic(self, arrays: Any) -> None:
        self.memory_traffic_bytes += size_bytes(arrays)

    def card_to(self, other: VirtualNode) -> NetworkCard:
        """The card that talks to another node: they are dealt out in order of first contact."""
        if other.name not in self._card_of:
            self._card_of[other.name] = self.cards[len(self._card_of) % len(self.cards)]
        return self._card_of[other.name]

    def _duration_s(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
        machine, cluster = self.machine, self.runtime.cluster
        compute_s = cluster.compute_s
        cost: Any = compute_s(fn, args) if callable(compute_s) else compute_s
        if isinstance(cost, PhasedStep):
            return cost.draw_s(machine, cluster, self.draws)
        if cost is not compute_s:
            require_finite("what Cluster.compute_s returned", cost)
        return float(cost / machine.speed * machine.factors(self.draws))


def service_time_s(cluster: Cluster, size: float) -> float:
    """How long a service works on a call that reads or writes `size` bytes."""
    return cluster.service_s + size * cluster.size_scale / cluster.memory_bandwidth_bytes_per_s
