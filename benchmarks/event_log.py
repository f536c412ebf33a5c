"""(i) The cost of the event log: runs that write one compared with runs that do not."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import dbjax
from benchmarks.measure import Measured, in_turn
from benchmarks.networks import Network, small
from benchmarks.threads import RULE, logging_to, replicas
from dbjax.algorithms import downpour

_CLUSTER = dbjax.Cluster(compute_s=0.1, latency_s=5e-4, service_s=1e-4)


def virtual(task: dbjax.Task, steps: int, log_to: Path | None = None) -> Any:
    """A case: steps per second of wall-clock time, of 20 replicas on 10 shards in virtual time."""

    def case() -> float:
        config = downpour.Config(rule=RULE, replicas=20, shards=10, steps=steps)
        with logging_to(log_to) as log:
            begin = time.perf_counter()
            dbjax.run(task, config, cluster=_CLUSTER, log=log, executor="engine")
        return 20 * steps / (time.perf_counter() - begin)

    return case


def compare(network: Network, directory: Path, rounds: int) -> list[Measured]:
    """Compares runs with and without a log, on every runtime that is installed."""
    task, log = network.task, directory / "events.jsonl"
    pairs: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "threads, 1 replica": (replicas, (task, 1, network.steps)),
        "threads, 4 replicas on 4 shards": (replicas, (task, 4, network.steps, 4)),
        "virtual, 20 replicas on 10 shards": (virtual, (task, 20)),
    }
    if importlib.util.find_spec("ray") is not None:
        given = (task, 2, network.steps, 2, "ray")
        pairs["Ray, 2 replicas on 2 shards"] = replicas, given
    return [
        in_turn(
            f"(i) {name}, {network.name}",
            "steps/s",
            {"no log": of(*given), "log": of(*given, log_to=log)},
            rounds,
            {"log": ">= 0.97"},
        )
        for name, (of, given) in pairs.items()
    ]


def run(rounds: int) -> list[Measured]:
    """Measures part (i); see `benchmarks.run`."""
    with tempfile.TemporaryDirectory() as directory:
        return compare(small(), Path(directory), rounds)
