"""(l) An update of Figure 4's methods, compared with its gradient and rule alone, on one core."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import optax

import dbjax
from benchmarks.measure import Measured, in_turn
from configs._figure4 import with_replicas
from dbjax.runtime.trace import Row
from dbjax.types import Params
from experiments import algorithms, build, construct
from experiments.command_line import load_config

METHOD = "configs/figure4/downpour_adagrad.py:laptop"
UPDATES = 3_000  # measured updates of a case, after as many that compile and touch memory


@functools.cache
def task() -> dbjax.Task:
    """The task of Figure 4."""
    return build.task(load_config(METHOD))


def bare(with_rule: bool) -> Callable[[], float]:
    """A case: milliseconds for the gradient of a ready mini-batch.

    Args:
      with_rule: whether to apply the server's update rule too.
    """
    value_and_grad = jax.jit(jax.value_and_grad(task().loss))
    rule = construct.rule(load_config(METHOD).rule.to_dict())
    params, batch = task().params, task().batches(0, 20).at(0)

    @jax.jit
    def apply(params: Params, state: optax.OptState, gradient: Params) -> object:
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def case() -> float:
        state = rule.init(params)
        begin = time.perf_counter()
        for _ in range(UPDATES // 10):
            found = value_and_grad(params, batch)
            jax.block_until_ready(apply(params, state, found[1]) if with_rule else found)
        return 1e3 * (time.perf_counter() - begin) / (UPDATES // 10)

    return case


def updates(replicas: int, overlap: bool) -> Callable[[], float]:
    """A case: milliseconds of wall-clock time for an update of Downpour with Adagrad."""
    config = load_config(METHOD)
    with_replicas(config, replicas)
    config.options.update(overlap=overlap, warm_start_updates=0)
    config.until_s = 2 * UPDATES / replicas * (0.2 if overlap else 0.5)  # about a step per replica
    config.evaluations = 10

    def case() -> float:
        seen: list[tuple[float, int]] = []

        def listen(row: Row) -> None:
            if row["node"] == "evaluator":
                seen.append((time.perf_counter(), row["updates"]))

        arguments = build.run_arguments(config)
        trace = dbjax.Trace(max_spans=config.max_spans, listeners=[listen])
        dbjax.run(task(), algorithms.algorithm(config), **arguments, trace=trace)
        (begin_s, first), (end_s, last) = seen[5], seen[-1]
        return 1e3 * (end_s - begin_s) / (last - first)

    return case


def run(rounds: int) -> list[Measured]:
    """Measures part (l); see `benchmarks.run`."""
    cases = {
        "gradient alone": bare(with_rule=False),
        "gradient and rule": bare(with_rule=True),
        "Downpour + Adagrad [20]": updates(20, overlap=False),
        "Downpour + Adagrad [200]": updates(200, overlap=False),
        "[200], overlapping, with local steps": updates(200, overlap=True),
    }
    title = "(l) an update of Figure 4 at size laptop, mini-batches of 100, one core"
    return [in_turn(title, "ms", cases, max(2, rounds // 2))]
