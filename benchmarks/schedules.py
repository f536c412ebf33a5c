"""(q) Compiled runs, compared with the bare scan of gradients and rule, and with the engine."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dbjax
from benchmarks.measure import Measured, in_turn
from benchmarks.sweep import Trials
from dbjax.algorithms import downpour
from dbjax.models import build
from dbjax.monitoring.evaluator import EvaluationSchedule
from dbjax.parameter_server.gradient_fn import compiled_gradient
from dbjax.parameter_server.optimizer import checked_trees, server_rule
from dbjax.schedules.compiled import CompiledArithmetic
from dbjax.schedules.recording import Recorded
from dbjax.schedules.schedule import round_robin
from dbjax.schedules.timing import TimedRun
from dbjax.schedules.turns import turns_of
from experiments.command_line import load_config
from experiments.sweep.plan import Plan
from experiments.sweep.space import Space, log_uniform

CLUSTER = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, machine=dbjax.Machine(law="lognormal", sigma=0.3)
)


def linear_regression(examples: int, batch_size: int = 32) -> dbjax.Task:
    """Ten parameters."""
    x = np.random.default_rng(0).normal(size=(examples, 10)).astype(np.float32)
    data = x, x @ np.arange(10, dtype=np.float32)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        return jnp.mean((x @ params["w"] - y) ** 2)

    return dbjax.Task({"w": jnp.zeros(10)}, loss, data, batch_size=batch_size)


def quadratic(examples: int) -> dbjax.Task:
    """A hundred parameters, with noise in the gradient."""
    noise = np.random.default_rng(0).normal(size=(examples, 100)).astype(np.float32)
    curvature = jnp.linspace(0.1, 1.0, 100)

    def loss(params: Any, batch: Any) -> jax.Array:
        w = params["w"]
        return 0.5 * jnp.sum(curvature * w * w) + jnp.mean(batch @ w)

    return dbjax.Task({"w": jnp.ones(100)}, loss, noise, batch_size=1)


def network(sizes: tuple[int, ...], batch_size: int, examples: int) -> dbjax.Task:
    """A fully connected network on noise."""
    random = np.random.default_rng(0)
    data = (
        random.normal(size=(examples, sizes[0])).astype(np.float32),
        random.integers(0, sizes[-1], examples).astype(np.int32),
    )
    model = build("mlp", inputs=sizes[0], classes=sizes[-1], seed=0, widths=sizes[1:-1])
    return dbjax.Task(model.params, model.loss, data, batch_size=batch_size)


def compiled(task: dbjax.Task, rule: Any, replicas: int, pushes: int) -> tuple[Any, Any, int]:
    """A case: microseconds per update of one chunk, without planning it; and what it is made of."""
    schedule = round_robin(pushes, replicas)
    turns = turns_of(schedule)
    indices = np.arange(schedule.gradients, dtype=np.int32)
    recorded = Recorded(schedule, indices, rule, rule, task.loss, replicas)
    arithmetic = CompiledArithmetic(task.seeded(0), recorded, turns)
    plan, count = arithmetic.planner.plan(0, len(turns))
    plan = jax.device_put(plan)
    held = [arithmetic.begin(task.start())]

    def case() -> float:
        begin = time.perf_counter()
        held[0], losses = arithmetic.run(held[0], plan, count)
        jax.block_until_ready(losses)
        return 1e6 * (time.perf_counter() - begin) / count

    return case, (arithmetic, plan), count


def bare_scan(task: dbjax.Task, rule: Any, made_of: Any, count: int) -> Callable[[], float]:
    """A case: microseconds per update of the same gradients and rule, with no delay at all."""
    arithmetic, plan = made_of
    gradient_fn = compiled_gradient(task.loss, arithmetic.partition)
    partition = arithmetic.partition
    like = jax.eval_shape(partition.split, task.shapes)
    apply = server_rule(rule, checked_trees(rule, partition, like)).apply
    rows = plan.batch[:count, 0]

    @functools.partial(jax.jit, donate_argnums=0)
    def scan(carry: Any, rows: Any, data: Any) -> Any:
        def body(carry: Any, chosen: Any) -> Any:
            params, state = carry
            loss, gradient = gradient_fn((params,), jax.tree.map(lambda a: a[chosen], data))
            return apply(params, state, gradient[0], task.batch_size), loss

        return jax.lax.scan(body, carry, rows)

    first = arithmetic.begin(task.start())
    held = [(first.params[0], first.states[0])]

    def case() -> float:
        begin = time.perf_counter()
        held[0], losses = scan(held[0], rows, arithmetic.planner.data)
        jax.block_until_ready(losses)
        return 1e6 * (time.perf_counter() - begin) / count

    return case


def against_the_scan(rounds: int) -> list[Measured]:
    """The limit: at least 0.9 of it."""
    small, large, wide = (64, 32, 10), (440, *(128,) * 5), (440, *(256,) * 4, 128)
    found = []
    for name, task, rule, replicas, pushes in (
        ("64-32-10, 20 replicas", network(small, 16, 40_000), optax.sgd(0.01), 20, 1024),
        ("64-32-10, 2,000 replicas", network(small, 16, 40_000), optax.sgd(0.01), 2000, 1024),
        ("440-128x4-128, 20 replicas", network(large, 100, 20_000), optax.adagrad(0.01), 20, 512),
        ("440-256x4-128, 20 replicas", network(wide, 100, 20_000), optax.adagrad(0.01), 20, 256),
    ):
        case, made_of, count = compiled(task, rule, replicas, pushes)
        cases = {"compiled run": case, "bare scan": bare_scan(task, rule, made_of, count)}
        found.append(in_turn(f"(q) {name}", "us per update", cases, rounds,
                             {"bare scan": ">= 0.9"}))  # fmt: skip
    return found


def whole_run(task: dbjax.Task, config: Any, executor: Any) -> Callable[[], float]:
    """A case: updates per second of `dbjax.run`, all in."""

    def case() -> float:
        begin = time.perf_counter()
        result = dbjax.run(task, config, cluster=CLUSTER, executor=executor)
        jax.block_until_ready(result.params)
        return float(result.summary["updates"]) / (time.perf_counter() - begin)

    return case


def against_the_engine(rounds: int) -> list[Measured]:
    """Whole runs: timing, planning, arithmetic and rows."""
    found = []
    for name, task, replicas, steps in (
        ("linear regression, 8 replicas", linear_regression(2_000), 8, 1000),
        ("linear regression, 1,000 replicas", linear_regression(64_000), 1000, 8),
        ("quadratic of 100, 8 replicas", quadratic(8_000), 8, 1000),
    ):
        config = downpour.Config(optax.sgd(0.001), replicas=replicas, shards=1, steps=steps)
        cases = {name: whole_run(task, config, name) for name in ("engine", "compiled")}
        found.append(in_turn(f"(q) {name}, whole runs", "updates/s", cases, rounds))
    return found


def many(rounds: int) -> Measured:
    """64 rates of one schedule."""
    task, pushes = linear_regression(2_000), 4_000
    table = round_robin(pushes, 8)
    config = downpour.Config(replicas=8, shards=1)
    rules = [optax.sgd(float(rate)) for rate in np.geomspace(1e-4, 1e-2, 64)]

    def case(at_once: bool) -> Callable[[], float]:
        def measured() -> float:
            begin = time.perf_counter()
            dbjax.run_many(task, config, table, over={"rule": rules}, at_once=at_once)
            return 64 * pushes / (time.perf_counter() - begin)

        return measured

    cases = {"one after another": case(False), "at once": case(True)}
    return in_turn("(q) 64 rates, linear regression", "updates/s", cases, rounds)


def trials(rounds: int) -> Measured:
    """Trials of a sweep over rates, with four seeds each, on two processes."""

    def of(executor: str) -> Trials:
        config = load_config("configs/quickstart.py")
        config.executor = executor
        space = Space({"rule.learning_rate": log_uniform(5e-3, 5e-1)}, seeds=4, sampler="random")
        return Trials(Plan(config, space), 2, os.sched_getaffinity(0))

    made = {name: of(name) for name in ("engine", "compiled")}
    try:
        for each in made.values():
            each.rate()  # compiles what trials share
        cases = {name: each.rate for name, each in made.items()}
        return in_turn("(q) a sweep of configs/quickstart.py, 4 seeds, 2 jobs", "trials/s",
                       cases, rounds, {"compiled": ">= 20"})  # fmt: skip
    finally:
        for each in made.values():
            each.close()


def timing(rounds: int) -> Measured:
    """The pass without arithmetic."""
    cases = {}
    for replicas, shards, steps in ((20, 10, 100), (10_000, 1, 2)):
        x = np.zeros((2 * replicas, 10), np.float32)
        params = {f"w{i}": jnp.zeros(10) for i in range(shards)}
        task = dbjax.Task(params, _sum_of_squares, x, batch_size=2).seeded(0)
        config = downpour.Config(optax.sgd(0.01), replicas=replicas, shards=shards, steps=steps)

        def case(task: Any = task, config: Any = config) -> float:
            begin = time.perf_counter()
            never = float("inf")
            evaluations = EvaluationSchedule(never, never, 1)
            timed = TimedRun(task, config, CLUSTER, until_s=never, evaluations=evaluations, seed=0)
            timed.advance()
            end = time.perf_counter()
            made = timed.timing().schedule
            return 2 * made.pushes * made.shards / (end - begin)

        cases[f"{replicas:,} replicas, {shards} shards"] = case
    return in_turn("(q) the pass without arithmetic", "service calls/s", cases, rounds)


def _sum_of_squares(params: Any, batch: Any) -> jax.Array:
    total: jax.Array = sum(jnp.mean((batch @ w) ** 2) for w in params.values())  # type: ignore[assignment]
    return total


def run(rounds: int) -> list[Measured]:
    """Measures part (q); see `benchmarks.run`."""
    return [
        *against_the_scan(rounds),
        *against_the_engine(min(rounds, 3)),
        many(rounds),
        trials(min(rounds, 3)),
        timing(min(rounds, 3)),
    ]
