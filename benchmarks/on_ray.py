"""(j) Processes on Ray, against the plain loop and the pattern of Ray's own documentation."""

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
_WARM = 20  # steps of each replica: its processes compile, and touch all their memory once


class PatternServer:
    """One actor with the parameters as NumPy arrays."""

    def __init__(self, params: list[Any]) -> None:
        self._params = [np.array(p) for p in params]

    def apply(self, gradient: list[Any]) -> list[Any]:
        for value, change in zip(self._params, gradient, strict=True):
            value -= _RATE * change
        return self._params


class PatternWorker:
    """Computes one gradient a call."""

    def __init__(self, gradient_fn: Any, treedef: Any, batches: Any) -> None:
        self._gradient_fn, self._treedef, self._batches = gradient_fn, treedef, batches
        self._step = 0

    def compute(self, params: list[Any]) -> list[Any]:
        batch = self._batches.at(self._step)
        self._step += 1
        gradient = self._gradient_fn(jax.tree.unflatten(self._treedef, params), batch)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]


class Pattern:
    """The asynchronous parameter server: a driver hands on whichever gradient is ready first."""

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
        """Steps a second of all workers together."""
        import ray

        first = ray.put(self._params)
        ray.get([worker.compute.remote(first) for worker in self._workers])  # all there, compiled
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
    @functools.cache
    def made() -> Pattern:
        return Pattern(task, count)

    return lambda: made().run(steps * count)


def replicas(task: dbjax.Task, count: int, steps: int) -> Callable[[], float]:
    """Steps a second of all replicas together; fetches and pushes overlap what is computed."""
    config = downpour.Config(rule=RULE, replicas=count, shards=1, steps=steps + _WARM, overlap=True)
    return lambda: steps_per_s(dbjax.run(task, config, runtime="ray"), _WARM)


def compare(network: Network, aim: str, rounds: int) -> Measured:
    import ray

    task, steps = network.task, network.steps
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"worker_niceness": 0},  # as that of the plain loop
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


def run(rounds: int, make: Callable[[], Network] = small, aim: str = ">= 0.6") -> list[Measured]:
    if importlib.util.find_spec("ray") is None:
        nothing = {"left out": "Ray is not installed (pip install 'dbjax[ray]')"}
        return [Measured("(j) Ray", "", {}, notes=nothing)]
    return [compare(make(), aim, rounds)]
