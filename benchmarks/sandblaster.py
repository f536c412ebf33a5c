"""(g) Sandblaster with 2,000 virtual replicas, compared with the full-batch gradient alone.

It also reports the traffic between coordinator and shards at 1 thousand and 42 million parameters.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dbjax
from benchmarks.measure import Measured, in_turn, peak_memory_gb
from dbjax.algorithms import sandblaster
from dbjax.data import ArrayExamples, Labelled, load
from dbjax.models import PAPER, SpeechConfig, model
from dbjax.optim import Stops
from dbjax.runtime.trace import Row

REPLICAS, SHARDS, PORTIONS = 2_000, 4, 4  # PORTIONS is per replica
NEVER = Stops(0.0, -1.0)
CLUSTER = dbjax.Cluster(
    compute_s=0.1,
    latency_s=5e-4,
    service_s=1e-4,
    memory_bandwidth_bytes_per_s=5e9,
    machine=dbjax.Machine(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=1.25e9),
)
_TOGETHER = 4096  # examples per program of the full-batch gradient
_STEPS = 4


def speech_task(width: int, frames: int) -> dbjax.Task:
    """Trains a speech network on frames that make `PORTIONS` portions for each replica.

    Args:
      width: the number of units in a hidden layer.
      frames: the number of frames of both sets together.
    """
    data = load("speech_frames", num_states=128, num_frames=frames).train
    network = model(SpeechConfig(width=width, states=128), 0)
    portion = -(-len(data) // (REPLICAS * PORTIONS))
    return dbjax.Task(network.params, network.loss, data, batch_size=portion)


def bare(task: dbjax.Task) -> Callable[[], float]:
    """A case: milliseconds for the gradient of all (ready) examples, in large programs."""
    portions = task.portions
    size = _TOGETHER // task.batch_size
    chunks = [
        tuple(range(i, min(i + size, portions.count))) for i in range(0, portions.count, size)
    ]
    batches = [portions.gather(chunk) for chunk in chunks]
    value_and_grad = jax.jit(jax.value_and_grad(task.loss))
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def case() -> float:
        begin = time.perf_counter()
        parts = (value_and_grad(task.params, batch) for batch in batches)
        jax.block_until_ready(functools.reduce(add, parts))
        return 1e3 * (time.perf_counter() - begin)

    return case


def iterations(task: dbjax.Task, replicas: int) -> Callable[[], float]:
    """A case: milliseconds of wall-clock time per evaluation of L-BFGS; an iteration makes one."""

    def case() -> float:
        ends: list[tuple[float, int]] = []

        def listen(row: Row) -> None:
            if row["node"] == "coordinator":
                ends.append((time.perf_counter(), row["evaluations"]))

        config = sandblaster.Config(
            replicas=replicas, shards=SHARDS, steps=_STEPS, stops=NEVER, send_every=8
        )
        dbjax.run(task, config, cluster=CLUSTER, trace=dbjax.Trace(listeners=[listen]))
        (begin_s, first), (end_s, last) = ends[1], ends[-1]  # the first one compiles
        return 1e3 * (end_s - begin_s) / (last - first)

    return case


def compare(width: int, frames: int, rounds: int) -> Measured:
    """Compares an iteration with the gradient alone; see `speech_task` for the arguments."""
    task = speech_task(width, frames)
    cases = {
        "full-batch gradient alone": bare(task),
        f"{REPLICAS} virtual replicas": iterations(task, REPLICAS),
    }
    return in_turn(
        f"(g) an iteration of Sandblaster L-BFGS, 440-{width}x4-128, "
        f"{len(task.examples):,} speech frames in portions of {task.batch_size}",
        "ms",
        cases,
        rounds,
        {f"{REPLICAS} virtual replicas": "<= 1.15"},
        {"peak memory of the process": f"{peak_memory_gb():.2f} GB"},
    )


def coordinator_traffic() -> Measured:
    """Reports the coordinator's traffic for two network sizes; an iteration has one evaluation."""
    random = np.random.default_rng(0)
    notes: dict[str, Any] = {}
    for config in (SpeechConfig(inputs=12, width=16, depth=3, states=16), PAPER):
        inputs = random.normal(size=(8, config.inputs)).astype(np.float32)
        labels = random.integers(config.states, size=8).astype(np.int32)
        network = model(config, 0)
        data = ArrayExamples(Labelled(inputs, labels))
        task = dbjax.Task(network.params, network.loss, data, batch_size=4)
        method = sandblaster.Config(replicas=2, shards=SHARDS, steps=3, stops=NEVER)
        summary = dbjax.run(task, method).summary
        told = summary["coordinator"]
        evaluations = summary["evaluations"] - 1
        notes[f"{network.size:,} parameters"] = (
            f"{told['bytes_per_iteration']:,.0f} bytes and {told['round_trips_per_iteration']:.1f} "
            f"round trips per iteration; {evaluations} evaluations in {summary['iterations']} "
            "iterations"
        )
    return Measured("(g) traffic between the coordinator and 4 shards", "", {}, notes=notes)


def run(rounds: int) -> list[Measured]:
    """Measures part (g); see `benchmarks.run`."""
    few = max(2, rounds // 2)
    sizes = ((256, 300_000), (512, 300_000), (256, 1_200_000))
    return [*(compare(width, frames, few) for width, frames in sizes), coordinator_traffic()]
