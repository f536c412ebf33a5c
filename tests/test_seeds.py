"""One seed is the source of the others, each of which can be set apart."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.data import load
from dbjax.monitoring.fault_injection import Chaos
from experiments import build
from experiments.command_line import load_config
from experiments.sweep.trial import Job, _runs

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X @ np.arange(3, dtype=np.float32)
TASK = dbjax.Task({"w": np.zeros(3, np.float32)}, lambda p, b: ((b[0] @ p["w"] - b[1]) ** 2).mean(),
                  data=(X, Y), batch_size=4)  # fmt: skip
CLUSTER = dbjax.Cluster(compute_s=0.1, machine=dbjax.Machine(law="exponential"))
METHOD = downpour.Config(rule=optax.sgd(0.01), replicas=2, shards=1, steps=6)


def ran(seed, data_seed=None, cluster_seed=None):
    """What the parameters are in the end, and when that is."""
    task = dataclasses.replace(TASK, seed=data_seed)
    cluster = dataclasses.replace(CLUSTER, seed=cluster_seed)
    summary = dbjax.run(task, METHOD, cluster=cluster, seed=seed).summary
    return summary["params_sha256"], summary["time_s"]


def test_the_seed_of_a_run_is_that_of_its_data_and_its_cluster():
    assert ran(7) == ran(7, 7, 7) == ran(5, 7, 7)
    assert ran(7)[0] != ran(8)[0]
    assert ran(7)[1] != ran(8)[1]
    assert ran(0) == ran(0, 0, 0)


def test_each_seed_can_be_set_apart():
    assert ran(7, data_seed=3)[1] == ran(7)[1]  # the delays stay
    assert ran(7, data_seed=3)[0] != ran(7)[0]
    assert ran(7, cluster_seed=3)[1] != ran(7)[1]


def test_replicas_in_threads_see_the_data_of_the_runs_seed():
    one = dataclasses.replace(METHOD, replicas=1)
    found = [
        dbjax.run(TASK, one, runtime="threads", seed=seed).summary["params_sha256"]
        for seed in (7, 7, 8)
    ]
    assert found[0] == found[1] != found[2]


def test_a_config_has_one_seed_for_all():
    config = load_config("configs/quickstart.py:smoke")
    config.seed = 7
    arguments, task = build.run_arguments(config), build.task(config)
    assert (arguments["seed"], arguments["cluster"].seed, task.seed) == (7, None, None)
    config.data_seed, config.cluster.seed = 8, 9
    arguments, task = build.run_arguments(config), build.task(config)
    assert (arguments["seed"], arguments["cluster"].seed, task.seed) == (7, 9, 8)


@pytest.mark.parametrize("apart", [False, True])
def test_a_trials_seeds_are_data_orders_and_its_cluster_seeds_delays(apart):
    config = load_config("configs/quickstart.py:smoke")
    config.seed = 3
    if apart:
        config.data_seed, config.cluster.seed = 10, 20
    runs = [run for _, run in _runs(Job(config, "train_loss", 2, 2, prunes=False))]
    data = [run.seed if run.data_seed is None else run.data_seed for run in runs]
    assert [run.seed for run in runs] == [3, 3, 4, 4]
    assert data == ([10, 10, 11, 11] if apart else [3, 3, 4, 4])
    assert [run.cluster.seed for run in runs] == ([20, 21] * 2 if apart else [3, 4] * 2)


BAD = [-5, 1.5, 1e23, 2**32, True, "1", float("nan")]


@pytest.mark.parametrize("seed", BAD)
@pytest.mark.parametrize(
    "use",
    [
        lambda seed: dbjax.run(TASK, METHOD, seed=seed),
        lambda seed: dataclasses.replace(TASK, seed=seed),
        lambda seed: dbjax.Cluster(seed=seed),
        lambda seed: Chaos(1.0, seed),
        lambda seed: load("synthetic", seed=seed),
    ],
)
def test_a_seed_that_is_none_is_refused_where_it_enters(use, seed):
    with pytest.raises(
        ValueError, match=r"seed='?[\w.+-]+'? must be (a whole number from 0 to 4294967295|int)"
    ):
        use(seed)


def test_seeds_may_be_numpys():
    assert ran(np.int64(7)) == ran(7)
    assert jax.random.key(2**32 - 1).shape == ()  # JAX takes the largest
