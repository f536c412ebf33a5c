"""A machine of the virtual cluster: its two cards, its speed, its random durations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from dbjax.runtime.base import Future, first_of, node_generator
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.sizes import size_bytes

if TYPE_CHECKING:
    from dbjax.runtime.virtual.runtime import VirtualRuntime


@final
class VirtualNode:
    """A `Node`; an observer's calls and sleeps cost the modelled cluster nothing."""

    def __init__(self, runtime: VirtualRuntime, name: str, *, observer: bool = False) -> None:
        self.runtime, self.name, self.observer = runtime, name, observer
        self.incarnation = 0
        self.machine = runtime.cluster.machine_of(name)
        self.egress_free_s = 0.0  # when the card's sending side has sent all it was given
        self.touched_bytes = 0  # by the call being served
        self.ingress_free_s = -1.0  # when its receiving side has received all that came

    @functools.cached_property
    def draws(self) -> np.random.Generator:
        """Durations and failures: seeded by the cluster, apart from `random`."""
        return node_generator(self.runtime.cluster.seed, f"draws of {self.name}")

    def now(self) -> float:
        return self.runtime.now_s

    def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
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
        future: Future[None] = Future("sleep")
        time_s = self.runtime.now_s + seconds
        self.runtime.at(time_s, future.set_result, None, unnoticed=self.observer)
        return future

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        return first_of(futures, None if timeout_s is None else self.sleep(timeout_s))

    def random(self) -> np.random.Generator:
        return node_generator(self.runtime.seed, self.name, self.incarnation)

    def record(self, **values: Any) -> None:
        if self.runtime.trace is not None:
            self.runtime.trace.record(self.name, self.runtime.now_s, values)

    def touched(self, arrays: Any) -> None:
        self.touched_bytes += size_bytes(arrays)

    def _duration_s(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
        machine = self.machine
        compute_s = self.runtime.cluster.compute_s
        seconds = (compute_s(fn, args) if callable(compute_s) else compute_s) / machine.speed
        if machine.law == "lognormal":
            mean = -0.5 * machine.sigma**2  # so that the factor has mean 1
            seconds *= self.draws.lognormal(mean, machine.sigma)
        elif machine.law == "exponential":
            seconds *= self.draws.standard_exponential()
        if machine.straggle_probability and self.draws.random() < machine.straggle_probability:
            seconds *= machine.straggle_factor
        return seconds


def service_time_s(cluster: Cluster, size: float) -> float:
    """How long a service works on a call that reads or writes `size` bytes."""
    return cluster.service_s + size * cluster.size_scale / cluster.memory_bandwidth_bytes_per_s
