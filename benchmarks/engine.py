"""(c) The speed of the virtual runtime's event loop alone, without any arithmetic."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Measured, in_turn, peak_memory_gb
from dbjax.runtime import Cluster, Machine, Node, VirtualRuntime, all_of

_CARDS = Machine(bandwidth_bytes_per_s=125e6, law="lognormal", sigma=0.2)
CLUSTER = Cluster(compute_s=0.1, latency_s=5e-4, service_s=1e-4, machine=_CARDS)


class Counter:
    """A shard that holds no parameters and only counts pushes."""

    def __init__(self, node: Node) -> None:
        self.version = 0

    def fetch(self) -> int:
        """Returns the number of pushes so far."""
        return self.version

    def push(self, gradient: float) -> None:
        """Counts a push."""
        self.version += 1


async def client(node: Node, shards: list[Any], steps: int) -> None:
    """A replica: each step fetches from all shards, computes nothing, and pushes to all."""
    for _ in range(steps):
        await all_of([shard.call(Counter.fetch) for shard in shards], list)
        await node.compute(float, 1)
        await all_of([shard.call(Counter.push, 1.0) for shard in shards], list)


def engine(replicas: int, shards: int, steps: int) -> Callable[[], float]:
    """A case: service calls per second of wall-clock time. A step makes 2 calls to each shard."""

    def case() -> float:
        runtime = VirtualRuntime(CLUSTER)
        served = [runtime.serve(f"shard/{i}", Counter) for i in range(shards)]
        for r in range(replicas):
            _ = runtime.spawn(f"replica/{r}", client, served, steps)
        begin = time.perf_counter()
        runtime.run()
        return 2 * replicas * shards * steps / (time.perf_counter() - begin)

    return case


def bare_heap(events: int) -> Callable[[], float]:
    """A case: events per second that a heap alone can push and pop, with a call for each."""

    def case() -> float:
        heap: list[Any] = [(float(i), i, str) for i in range(1000)]
        begin = time.perf_counter()
        for i in range(events):
            time_s, _, do = heapq.heappop(heap)
            do()
            heapq.heappush(heap, (time_s + 1000.0, 1000 + i, str))
        return events / (time.perf_counter() - begin)

    return case


def run(rounds: int) -> list[Measured]:
    """Measures part (c); see `benchmarks.run`."""
    few = {
        "a heap with a call for each event": bare_heap(300_000),
        "20 replicas x 100 steps": engine(20, 10, 100),
    }
    aims = {"20 replicas x 100 steps": ">= 60,000 /s"}
    title = "(c) the event loop alone, with 10 shards: events or service calls"
    many = {"10,000 replicas x 10 steps": engine(10_000, 10, 10)}
    measured = [in_turn(title, "per s", few, rounds, aims), in_turn(title, "per s", many, 1)]
    memory = f"{peak_memory_gb():.2f} GB (aim: below 2 GiB)"
    measured[-1].notes["peak memory of the process"] = memory
    return measured
