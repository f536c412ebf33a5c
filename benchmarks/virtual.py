"""(b) The cost of virtual time: 20 replicas and 10 shards, compared with the arithmetic alone."""

from __future__ import annotations

import time
from typing import Any

import jax

import dbjax
from benchmarks.measure import Measured, in_turn, peak_memory_gb
from benchmarks.networks import Network, small
from dbjax.algorithms import downpour
from dbjax.optim import downpour_adagrad
from dbjax.parameter_server import ParameterServer, Shard, server_rule
from dbjax.runtime import VirtualRuntime
from dbjax.runtime.trace import Row

REPLICAS, SHARDS, STEPS = 20, 10, 30
RULE = downpour_adagrad(0.01, initial_accumulator=1e-6)
CLUSTER = dbjax.Cluster(
    compute_s=0.1,
    latency_s=5e-4,
    service_s=1e-4,
    machine=dbjax.Machine(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=125e6),
)
_WARM = 2 * REPLICAS  # uncounted first mini-batches, which compile


def virtual(network: Network) -> Any:
    """A case: milliseconds of wall-clock time per mini-batch, of any replica."""

    def case() -> float:
        ends: list[float] = []

        def listen(row: Row) -> None:
            if "loss" in row:
                ends.append(time.perf_counter())

        config = downpour.Config(rule=RULE, replicas=REPLICAS, shards=SHARDS, steps=STEPS)
        trace = dbjax.Trace(max_spans=100_000, listeners=[listen])
        dbjax.run(network.task, config, cluster=CLUSTER, trace=trace, executor="engine")
        return 1e3 * (ends[-1] - ends[_WARM]) / (len(ends) - 1 - _WARM)

    return case


def arithmetic(network: Network) -> Any:
    """A case: milliseconds for the same gathering, gradient and shard updates in a plain loop."""
    task = network.task
    server = ParameterServer.serve(VirtualRuntime(), Shard, task.params, SHARDS, server_rule(RULE))
    (gradient_fn,), rule = server.gradients_of(task.loss, task.batch, 1), server_rule(RULE)
    slices = jax.jit(server.partition.split)(task.params)
    held = [(slice_, rule.init(slice_)) for slice_ in slices]
    batches = [task.batches(r, REPLICAS) for r in range(REPLICAS)]

    def case() -> float:
        begin, count = time.perf_counter(), (STEPS - 2) * REPLICAS
        for k in range(count):
            batch = batches[k % REPLICAS].at(k // REPLICAS)
            _, gradient = gradient_fn(tuple(params for params, _ in held), batch)
            for i, (params, state) in enumerate(held):
                held[i] = rule.apply(params, state, gradient[i], task.batch_size)
        jax.block_until_ready(held)
        return 1e3 * (time.perf_counter() - begin) / count

    return case


def run(rounds: int) -> list[Measured]:
    """Measures part (b); see `benchmarks.run`."""
    network = small()
    alone, whole = arithmetic(network), virtual(network)
    return [
        in_turn(
            f"(b) {REPLICAS} replicas x {SHARDS} shards in virtual time, {network.name}",
            "ms per mini-batch",
            {"gradients and updates alone": alone, "virtual runtime": whole},
            rounds,
            {"virtual runtime": "<= 1.15"},
            {"peak memory of the process": f"{peak_memory_gb():.2f} GB"},
        )
    ]
