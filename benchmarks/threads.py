"""(a) Replicas in threads, compared with the plain loop of gradient and update in one program."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import optax

import dbjax
from benchmarks.measure import Measured, in_turn
from benchmarks.networks import Network, small
from dbjax.algorithms import downpour
from dbjax.train import RuntimeName

RULE = optax.sgd(0.05)
WARM = 3  # uncounted first steps of each replica, which compile


def fused_loop(task: dbjax.Task, steps: int) -> Any:
    """A case: steps per second of the loop of optax's tutorials, in one donated program."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, gradient = jax.value_and_grad(task.loss)(params, batch)
        updates, state = RULE.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(lambda p: p + 0, task.params)
    held = {"params": params, "state": RULE.init(params)}
    batches = task.batches(0, 1)

    def case() -> float:
        params, state = held["params"], held["state"]
        begin = time.perf_counter()
        for k in range(steps):
            params, state, loss = compiled(params, state, batches.at(k))
        jax.block_until_ready((params, loss))
        held.update(params=params, state=state)
        return steps / (time.perf_counter() - begin)

    return case


def two_programs(task: dbjax.Task, steps: int) -> Any:
    """A case: the same with gradient and update as two programs: any parameter server's limit."""
    gradient_fn = jax.jit(jax.value_and_grad(task.loss))

    @jax.jit
    def update(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = RULE.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    held = {"params": task.params, "state": RULE.init(task.params)}
    batches = task.batches(0, 1)

    def case() -> float:
        params, state = held["params"], held["state"]
        begin = time.perf_counter()
        for k in range(steps):
            loss, gradient = gradient_fn(params, batches.at(k))
            params, state = update(params, state, gradient)
        jax.block_until_ready((params, loss))
        held.update(params=params, state=state)
        return steps / (time.perf_counter() - begin)

    return case


@contextlib.contextmanager
def logging_to(path: Path | None) -> Iterator[dbjax.EventLog | None]:
    """An event log that is written to the given file; None if there is no path."""
    if path is None:
        yield None
        return
    with path.open("w", buffering=1) as file:
        yield dbjax.EventLog(file.write)


def replicas(
    task: dbjax.Task,
    count: int,
    steps: int,
    shards: int = 1,
    runtime: RuntimeName = "threads",
    log_to: Path | None = None,
) -> Any:
    """A case: steps per second of all replicas together while all of them run.

    Args:
      task: the task.
      count: the number of replicas.
      steps: the number of counted steps of each replica.
      shards: the number of shards.
      runtime: where to run.
      log_to: the file of the event log; None: no log.
    """

    def case() -> float:
        config = downpour.Config(rule=RULE, replicas=count, shards=shards, steps=steps + WARM)
        with logging_to(log_to) as log:
            return steps_per_s(dbjax.run(task, config, runtime=runtime, log=log), WARM)

    return case


def steps_per_s(result: dbjax.Result, warm: int) -> float:
    """Steps per second of all replicas together while all run, after `warm` steps of each."""
    ends: dict[str, list[float]] = {}
    for row in result.trace.rows:
        if "loss" in row:
            ends.setdefault(row["node"], []).append(row["time_s"])
    begin_s = max(times[warm - 1] for times in ends.values())
    end_s = min(times[-1] for times in ends.values())
    counted = sum(begin_s < t <= end_s for times in ends.values() for t in times)
    return counted / (end_s - begin_s)


def compare(network: Network, aim: str, rounds: int) -> Measured:
    """Compares replicas in threads with plain loops.

    Args:
      network: the network to train.
      aim: the ratio to the fused loop that replicas should reach, as text.
      rounds: the number of measurements of each case.
    """
    task, steps = network.task, network.steps
    cases = {
        "fused, donated optax loop": fused_loop(task, steps),
        "loop, gradient and update separate": two_programs(task, steps),
    }
    for count in (1, 2):
        cases[f"threads, {count} replica{'s' * (count > 1)}"] = replicas(task, count, steps)
    return in_turn(
        f"(a) aggregate steps/s, {network.name}, batch {task.batch_size}",
        "steps/s",
        cases,
        rounds,
        dict.fromkeys(list(cases)[2:], aim),
    )


def run(rounds: int) -> list[Measured]:
    """Measures part (a); see `benchmarks.run`."""
    return [compare(small(), ">= 0.95", rounds)]
