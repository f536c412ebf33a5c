"""(j) Replicas on Ray, compared with a plain loop and with the pattern of Ray's documentation."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import dbjax
from benchmarks.measure import Measured, in_turn
from benchmarks.networks import Network, small
from benchmarks.threads import RULE, fused_loop, steps_per_s
from dbjax.algorithms import downpour

_RATE = 0.05
_WARM = 20  # uncounted first steps of a replica, which compile and touch all memory once


class PatternServer:
    """The server of Ray's pattern: one actor that holds the parameters as NumPy arrays."""

    def __init__(self, params: list[Any]) -> None:
        self._params = [np.array(p) for p in params]

    def apply(self, gradient: list[Any]) -> list[Any]:
        """Applies a gradient and returns the new parameters."""
        for value, change in zip(self._params, gradient, strict=True):
            value -= _RATE * change
        return self._params


class PatternWorker:
    """The worker of Ray's pattern."""

    def __init__(self, gradient_fn: Any, treedef: Any, batches: Any) -> None:
        self._gradient_fn, self._treedef, self._batches = gradient_fn, treedef, batches
        self._step = 0

    def compute(self, params: list[Any]) -> list[Any]:
        """Computes the gradient of the next mini-batch."""
        batch = self._batches.at(self._step)
        self._step += 1
        gradient = self._gradient_fn(jax.tree.unflatten(self._treedef, params), batch)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]


class Pattern:
    """Ray's asynchronous parameter server: the driver forwards each gradient once it is ready."""

    def __init__(self, task: dbjax.Task, count: int) -> None:
        import ray

        leaves, treedef = jax.tree.flatten(task.params)
        gradient_fn = jax.jit(jax.grad(task.loss))
        self._params = [np.asarray(leaf) for leaf in leaves]
        server: Any = ray.remote(num_cpus=0.1)(PatternServer)
        worker: Any = ray.remote(num_cpus=0.1)(PatternWorker)
        self._server = server.remote(self._params)
        self._workers = [
            worker.remote(gradient_fn, treedef, task.batches(i, count)) for i in range(count)
        ]

    def run(self, steps: int) -> float:
        """Takes steps; returns steps per second of all workers together."""
        import ray

        first = ray.put(self._params)
        ray.get(
            [worker.compute.remote(first) for worker in self._workers]
        )  # all have started and compiled
        computing = {worker.compute.remote(first): worker for worker in self._workers}
        begin, done = time.perf_counter(), 0
        while done < steps:
            (gradient,), _ = ray.wait(list(computing))
            worker = computing.pop(gradient)
            params = self._server.apply.remote(gradient)
            computing[worker.compute.remote(params)] = worker
            done += 1
        taken_s = time.perf_counter() - begin
        ray.get(list(computing))
        return steps / taken_s


def pattern(task: dbjax.Task, count: int, steps: int) -> Callable[[], float]:
    """A case: steps per second of `count` workers in Ray's pattern."""

    @functools.cache
    def made() -> Pattern:
        return Pattern(task, count)

    return lambda: made().run(steps * count)


def replicas(task: dbjax.Task, count: int, steps: int) -> Callable[[], float]:
    """A case: steps per second of all replicas; fetches and pushes overlap with computation."""
    config = downpour.Config(rule=RULE, replicas=count, shards=1, steps=steps + _WARM, overlap=True)
    return lambda: steps_per_s(dbjax.run(task, config, runtime="ray"), _WARM)


def compare(network: Network, aim: str, rounds: int) -> Measured:
    """Compares dbjax with Ray's pattern and the plain loop.

    Args:
      network: the network to train.
      aim: the ratio to the plain loop that dbjax should reach, as text.
      rounds: the number of measurements of each case.
    """
    import ray

    task, steps = network.task, network.steps
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"worker_niceness": 0},  # the same as for the plain loop
        )
    cases = {"fused, donated optax loop": fused_loop(task, steps)}
    for count in (1, 2):
        cases[f"Ray's documented pattern, {count}"] = pattern(task, count, steps)
    for count in (1, 2):
        cases[f"dbjax on Ray, {count}"] = replicas(task, count, steps)
    try:
        return in_turn(
            f"(j) steps/s of all workers, {network.name}, batch {task.batch_size}",
            "steps/s",
            cases,
            rounds,
            dict.fromkeys(list(cases)[3:], aim),
        )
    finally:
        ray.shutdown()


def run(rounds: int, make: Callable[[], Network] = small, aim: str = ">= 0.3") -> list[Measured]:
    """Measures part (j); see `benchmarks.run`. Without Ray it only says so.

    Args:
      rounds: the number of measurements of each case.
      make: makes the network.
      aim: the ratio to the plain loop that dbjax should reach, as text.
    """
    if importlib.util.find_spec("ray") is None:
        nothing = {"left out": "Ray is not installed (pip install 'dbjax[ray]')"}
        return [Measured("(j) Ray", "", {}, notes=nothing)]
    return [compare(make(), aim, rounds)]
