"""Nodes of the threads runtime, whose clock is the wall clock."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import numpy as np

from dbjax.runtime.context import current
from dbjax.runtime.interface import Arrivals, Future, first_of, node_generator, ready
from dbjax.runtime.threads.engine import Engine


@final
class ThreadNode:
    """A `Node` in real time."""

    elsewhere = False  # whether the node is in another operating-system process

    def __init__(self, engine: Engine, name: str, *, observer: bool = False) -> None:
        self.engine, self.name, self.observer = engine, name, observer
        self.incarnation, self.returned = engine.incarnation, engine.returned
        self._computed: Any = None

    def now(self) -> float:
        return current.caller.observations.now(self.engine.now_s())

    def compute(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        engine = self.engine
        if engine.over():
            return Future("the end")
        if not self.observer:
            engine.computing.add(self)
        begin_s = engine.now_s()
        value = fn(*args, **kwargs)
        if engine.waits_for_numerics():
            jax.block_until_ready(value)  # not kept here: it may be as large as the parameters
        else:
            before, self._computed = self._computed, value
            jax.block_until_ready(before)
        if engine.trace is not None and not self.observer:
            engine.trace.span(self.name, "compute", begin_s, engine.now_s())
        return ready(value)

    def sleep(self, seconds: float) -> Future[None]:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"sleep({seconds!r}): needs a finite number of seconds, at least 0")
        future: Future[None] = Future("sleep")
        weight = 0 if self.observer else 1
        self.engine.sleeping += weight

        def wake() -> None:
            self.engine.sleeping -= weight
            future.set_result(None)

        timer = threading.Timer(seconds, wake)
        timer.daemon = True
        timer.start()
        return future

    def first(
        self, futures: Sequence[Future[Any]], timeout_s: float | None = None
    ) -> Future[int | None]:
        first = first_of(futures, None if timeout_s is None else self.sleep(timeout_s))
        return current.caller.observations.first(futures, first)

    def is_done(self, future: Future[Any]) -> Future[bool]:
        return current.caller.observations.is_done(future)

    def arrivals(self, label: object) -> Arrivals[Any]:
        return current.caller.observations.arrivals(label)

    def random(self) -> np.random.Generator:
        return node_generator(self.engine.seed, self.name, self.incarnation)

    def record(self, **values: Any) -> None:
        if self.engine.trace is not None:
            self.engine.trace.record(self.name, self.engine.now_s(), values)

    def service(self, name: str) -> Any:
        return self.engine.services[name]

    def save_progress(self, state: Any) -> None:
        """Does nothing, since runs in real time are resumed from the shards' states only."""

    def saved_progress(self) -> Any:
        return None

    def count_memory_traffic(self, arrays: Any) -> None:
        """Does nothing, since memory traffic takes real time here."""
