"""Drawn methods, clusters and rules, for comparing compiled runs with the engine."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

import dbjax
from dbjax.algorithms import downpour, sgd, ssp

RULES = {
    "sgd": lambda: optax.sgd(0.02),
    "momentum": lambda: optax.sgd(0.02, momentum=0.9, nesterov=True),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.02),
    "schedule": lambda: optax.sgd(optax.exponential_decay(0.05, 10, 0.9)),
    "too fast": lambda: optax.sgd(1e6),  # pushes with infinite gradients are refused
}
X = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)


def loss(params, batch):
    return sum(jnp.mean((batch @ leaf - 1.0) ** 2) for leaf in params.values())


def evaluate(params):
    return {"norm": sum(float(jnp.sum(leaf * leaf)) for leaf in params.values())}


def task_of(leaves):
    params = {f"w{i}": jnp.full(6, 0.5 + i) for i in range(leaves)}
    return dbjax.Task(params, loss, X, batch_size=4, evaluate=evaluate)


@dataclasses.dataclass
class Case:
    """A run: its task, the Config of a method, and further arguments of `dbjax.run`."""

    number: int
    task: dbjax.Task
    config: object
    kwargs: dict


def case_of(number):
    """Draws the case of a number."""
    random = np.random.default_rng([number, 19])
    draw = lambda *values: values[random.integers(len(values))]  # noqa: E731
    replicas, shards = int(random.integers(1, 7)), int(random.integers(1, 8))
    rule = RULES[draw(*RULES)]()
    method = draw("downpour", "downpour", "downpour", "ssp", "sgd")
    steps = draw(None, int(random.integers(3, 25)))
    common = {"rule": rule, "replicas": replicas, "shards": shards, "steps": steps}
    backups = draw(0, 0, 1)
    if method == "sgd":
        shards = common["shards"] = 1 if replicas == 1 else shards
        config = sgd.Config(**common, shard_backups=backups if replicas > 1 else 0)
    else:
        n_push, n_fetch = int(random.integers(1, 4)), int(random.integers(1, 4))
        more = {"n_push": n_push, "n_fetch": n_fetch}
        if method == "ssp":
            more["n_fetch"] = min(more.values())
            config = ssp.Config(**common, **more, bound=int(random.integers(0, 3)))
        else:
            more["overlap"] = draw(False, False, True)
            more["local_rule"] = draw(None, None, optax.adam(0.01))
            more |= draw({}, {}, {"warm_start_updates": 1, "warm_start_s": 0.1})
            config = downpour.Config(**common, **more, shard_backups=backups)
    cluster = _cluster(random, draw, replicas, shards if backups else 0)
    kwargs = {"cluster": cluster, "evaluate_every_s": draw(None, 0.31), "seed": number}
    if steps is None or random.random() < 0.3:
        kwargs["until_s"] = float(random.uniform(0.3, 2.0))
    return Case(number, task_of(max(1, shards)), config, kwargs)


def _cluster(random, draw, replicas, shards):
    """Draws a cluster, in which replicas may fail, and shards if they have backups."""
    machine = draw(
        dbjax.Machine(),
        dbjax.Machine(law="lognormal", sigma=0.5),
        dbjax.Machine(law="lognormal", sigma=0.3, bandwidth_bytes_per_s=2e3),
    )
    failures = []
    for node in (
        *(f"replica/{r}" for r in range(replicas)),
        *(f"shard/{s}" for s in range(shards)),
    ):
        if random.random() < 0.2:
            at_s = float(random.uniform(0.05, 1.0))
            failures.append(dbjax.Failure(node, at_s=at_s, back_s=at_s + random.uniform(0.05, 0.5)))
    return dbjax.Cluster(
        compute_s=0.05,
        latency_s=draw(0.0, 1e-3, 2e-2),
        service_s=draw(0.0, 1e-3),
        machine=machine,
        failures=tuple(failures),
    )
