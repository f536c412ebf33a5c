"""Proofs 7, 8 and 10: laws of staleness, stationary variance, throughput."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd


def linear(params, batch):
    return jnp.sum(params) * 0.0


def staleness(law, replicas=5, seed=0, steps=4000):
    task = dbjax.Task(jnp.ones(1), linear, np.zeros(1000, np.float32), batch_size=1)
    cluster = dbjax.Cluster(machine=dbjax.Machine(law=law), seed=seed)
    config = downpour.Config(rule=optax.sgd(0.0), replicas=replicas, shards=1)
    result = dbjax.run(task, config, cluster=cluster, until_s=float(steps))
    return result.staleness_histogram


def test_7_exponential_times_give_geometric_staleness():
    replicas = 5
    histogram = staleness("exponential", replicas)
    total = sum(histogram.values())
    for k in range(12):
        chance = (1 / replicas) * (1 - 1 / replicas) ** k
        # consecutive delays are weakly dependent; six standard errors of independent ones
        error = 6 * math.sqrt(chance * (1 - chance) / total)
        assert histogram.get(k, 0) / total == pytest.approx(chance, abs=error), k
    constant = staleness("constant", replicas, steps=200)
    assert constant[replicas - 1] == sum(constant.values()) - (replicas - 1)  # one delay only


def remembering(rule, updates):
    """SGD that also writes each value of the single parameter into `path`."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(gradient, count, params):
        move = -rule * gradient["w"]
        path = jnp.zeros(updates).at[count].set(params["w"] + move, mode="drop")
        return {"w": move, "path": path}, count + 1

    return optax.GradientTransformation(init, update)


def path(law, lr, replicas, updates, seed):
    task = dbjax.Task(
        {"w": jnp.ones(()), "path": jnp.zeros(updates)},
        lambda p, batch: 0.5 * p["w"] ** 2,
        np.zeros(1000),
        batch_size=1,
    )
    cluster = dbjax.Cluster(machine=dbjax.Machine(law=law), seed=seed)
    config = downpour.Config(rule=remembering_rule(lr, updates), replicas=replicas, shards=1)
    return np.array(dbjax.run(task, config, cluster=cluster, until_s=20.0).params["path"])


remembering_rule = functools.lru_cache(remembering)


def test_7_the_mean_path_is_heavy_ball(float64):
    """Mean over delay seeds: momentum 1 - 1/M, step lr / M (Mitliagkas et al. 2016)."""
    replicas, lr, updates = 4, 0.4, 12
    paths = np.array([path("exponential", lr, replicas, updates, seed) for seed in range(100)])
    mean, error = paths.mean(0), paths.std(0) / math.sqrt(len(paths))
    expected = heavy_ball(lr / replicas, 1 - 1 / replicas, updates)
    assert np.all(np.abs(mean - expected) < 5 * error + 1e-9)
    constant = path("constant", lr, replicas, updates, 0)
    assert np.any(np.abs(constant - expected) > 5 * error + 0.05)


def heavy_ball(step, momentum, updates):
    """From 1, with the velocity that steps at the starting point would have left."""
    w, velocity, path = 1.0, -step / (1 - momentum), []
    for _ in range(updates):
        velocity = momentum * velocity - step * w
        w = w + velocity
        path.append(w)
    return np.array(path)


def test_10_asynchronous_throughput_adds_and_synchronous_waits():
    speeds = (1.0, 0.5, 0.25)
    machines = {f"replica/{i}": dbjax.Machine(speed=s) for i, s in enumerate(speeds)}
    cluster = dbjax.Cluster(compute_s=1.0, machines=machines)
    task = dbjax.Task(jnp.ones(1), linear, np.zeros(1000, np.float32), batch_size=1)
    free = dbjax.run(task, downpour.Config(replicas=3, shards=1), cluster=cluster, until_s=400.5)
    assert free.summary["updates"] == 400 * sum(speeds)
    bound = dbjax.run(task, sgd.Config(replicas=3), cluster=cluster, until_s=400.5)
    assert bound.summary["examples"] == 3 * 400 / 4  # n / max t


def test_10_one_shard_saturates_at_its_service_time():
    task = dbjax.Task(jnp.ones(1), linear, np.zeros(1000, np.float32), batch_size=1)
    cluster = dbjax.Cluster(compute_s=1.0, service_s=0.05)
    config = downpour.Config(replicas=40, shards=1)  # 40 / s of work for 1 / (2 * 0.05) / s
    result = dbjax.run(task, config, cluster=cluster, until_s=100.0)
    # every step takes a fetch and a push, of 0.05 s each: ten steps a second
    assert result.summary["updates"] == pytest.approx(100 / 0.1, rel=0.02)


@pytest.mark.parametrize("tau", [0, 1])
def test_8_stationary_variance_of_noisy_descent(tau, float64):
    """Minibatches of one example, loss 0.5 (w - x)^2: gradient noise of variance var(x)."""
    a, noise = 0.2, 1.0
    expected = (
        a**2 * noise / (a * (2 - a))
        if tau == 0
        else a**2 * (1 + a) * noise / ((1 - a) * a * (2 + a))
    )
    dimensions = 200  # independent copies
    data = np.random.default_rng(0).normal(scale=math.sqrt(noise), size=(20_000, dimensions))
    task = dbjax.Task(
        jnp.zeros(dimensions), lambda w, x: 0.5 * jnp.sum((w - x[0]) ** 2), data, batch_size=1
    )
    config = downpour.Config(rule=optax.sgd(a), replicas=tau + 1, shards=1, steps=400)
    squares = [
        float(jnp.mean(dbjax.run(dbjax.Task(
            task.params, task.loss, data, 1, seed=seed), config).params ** 2))
        for seed in range(12)
    ]  # fmt: skip
    # 12 x 200 squares of normals: relative standard error sqrt(2 / 2400); five of them
    assert np.mean(squares) == pytest.approx(expected, rel=5 * math.sqrt(2 / 2400))
    other = a**2 * noise / (a * (2 - a)) if tau else a**2 * (1 + a) / ((1 - a) * a * (2 + a))
    assert np.mean(squares) != pytest.approx(other, rel=5 * math.sqrt(2 / 2400))
