"""Many trials of one schedule."""

import dataclasses
import sys

import jax
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, easgd
from dbjax.schedules.schedule import round_robin
from tests.schedules.drawn import task_of

CLUSTER = dbjax.Cluster(compute_s=0.1, latency_s=1e-3)
RATES = (0.01, 0.03)


def config(rate, **kwargs):
    return downpour.Config(optax.adam(rate), replicas=3, shards=2, steps=12, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"n_push": 2, "n_fetch": 3}])
@pytest.mark.parametrize("at_once", [False, True, None])
def test_trials_are_what_runs_of_their_own_are(at_once, kwargs):
    table = dbjax.schedule(task_of(2), config(0.1, **kwargs), CLUSTER)
    over = {"rule": [optax.adam(rate) for rate in RATES], "seed": [0, 1]}
    many = dbjax.run_many(task_of(2), config(0.1, **kwargs), table, over=over, at_once=at_once)
    assert many.at_once in (at_once, True, False)
    assert many.losses.shape == (2, 2, table.gradients)
    for i, rate in enumerate(RATES):
        for seed in (0, 1):
            run = dbjax.run(
                dataclasses.replace(task_of(2), seed=seed), config(rate, **kwargs), cluster=CLUSTER
            )
            found = jax.tree.map(lambda a, at=(i, seed): a[at], many.params)
            require_equal(found, run.params, exactly=not many.at_once)


def require_equal(found, expected, *, exactly):
    """At once, XLA adds in another order."""
    tolerance = 0.0 if exactly else 1e-5
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance, rtol=tolerance)


def test_initial_parameters_are_an_axis_of_their_own():
    starts = [jax.tree.map(lambda a, by=by: a * by, task_of(2).params) for by in (1.0, 2.0, 3.0)]
    table = dbjax.schedule(task_of(2), config(0.01), CLUSTER)
    over = {"params": starts, "rule": [optax.adam(0.01), optax.adam(0.03)]}
    many = dbjax.run_many(task_of(2), config(0.01), table, over=over)
    assert many.losses.shape[:2] == (3, 2)
    first = dbjax.run(dataclasses.replace(task_of(2), params=starts[2], seed=0), config(0.03),
                      cluster=CLUSTER)  # fmt: skip
    np.testing.assert_allclose(many.params["w0"][2, 1], first.params["w0"], rtol=1e-5)


def test_schedules_are_an_axis_of_their_own():
    machine = dbjax.Machine(law="lognormal", sigma=0.5)
    clusters = [dbjax.Cluster(compute_s=0.1, machine=machine, seed=seed) for seed in (1, 2)]
    tables = [dbjax.schedule(task_of(2), config(0.1), cluster) for cluster in clusters]
    over = {"rule": [optax.adam(0.01), optax.adam(0.03)], "schedule": tables}
    many = dbjax.run_many(task_of(2), config(0.1), over=over, at_once=False)
    for i, rate in enumerate((0.01, 0.03)):
        for k, cluster in enumerate(clusters):
            run = dbjax.run(task_of(2), config(rate), cluster=cluster)
            found = jax.tree.map(lambda a, at=(i, k): a[at], many.params)
            require_equal(found, run.params, exactly=True)
    with pytest.raises(ValueError, match="between 9 and 12 gradients"):
        dbjax.run_many(
            task_of(2), config(0.1), over={"schedule": [round_robin(9, 3), round_robin(12, 3)]}
        )
    with pytest.raises(ValueError, match="replicas=4 and shards=1, and the Config has replicas=3"):
        dbjax.run_many(task_of(2), config(0.1), round_robin(9, 4), over={})


def test_curves_are_means():
    one_shard = downpour.Config(optax.adam(0.01), replicas=3, shards=1)
    many = dbjax.run_many(task_of(1), one_shard, round_robin(5000, 3), over={"seed": [0]})
    assert (many.every, many.losses.shape) == (5, (1, 1000))


def test_gradients_that_no_shard_applies_have_losses_too():
    table = dbjax.schedule(task_of(2), config(0.1), CLUSTER, until_s=0.45)
    assert (table.position < 0).any()
    assert dbjax.run_many(task_of(2), config(0.01), table, over={"seed": [0]}).losses.all()


def test_trials_beside_each_other_do_not_share_what_they_cache(monkeypatch):
    """Indices of examples are found block by block, and here every chunk is one."""
    monkeypatch.setattr("dbjax.schedules.plan._INDEX_BYTES", 1)
    monkeypatch.setattr("dbjax.schedules.plan._TURNS", 8)
    table = dbjax.schedule(task_of(2), config(0.1), CLUSTER)
    over = {"rule": [optax.adam(0.01 * (i + 1)) for i in range(8)]}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        many = dbjax.run_many(task_of(2), config(0.1), table, over=over, at_once=False)
    finally:
        sys.setswitchinterval(interval)
    for i, rule in enumerate(over["rule"]):
        alone = dbjax.run_many(task_of(2), config(0.1), table, over={"rule": [rule]})
        require_equal(
            jax.tree.map(lambda a, i=i: a[i], many.params),
            jax.tree.map(lambda a: a[0], alone.params),
            exactly=True,
        )


def test_methods_with_arithmetic_of_their_own_are_refused():
    other = easgd.Config(replicas=3, shards=2)
    with pytest.raises(ValueError, match="the method easgd may compute something of its own"):
        dbjax.run_many(task_of(2), other, round_robin(9, 3), over={"seed": [0]})


def test_rules_that_are_other_programs_run_each_by_itself():
    rules = [optax.sgd(0.01), optax.adam(0.01), optax.adam(0.01, b1=0.8)]
    table = dbjax.schedule(task_of(2), config(0.1), CLUSTER)
    many = dbjax.run_many(task_of(2), config(0.1), table, over={"rule": rules})
    assert not many.at_once
    for i, rule in enumerate(rules):
        one = dataclasses.replace(config(0.1), rule=rule)
        run = dbjax.run(task_of(2), one, cluster=CLUSTER)
        require_equal(jax.tree.map(lambda a, i=i: a[i], many.params), run.params, exactly=True)
    with pytest.raises(ValueError, match="at_once=True: the rules differ in more than numbers"):
        dbjax.run_many(task_of(2), config(0.1), table, over={"rule": rules}, at_once=True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"rate": [1]}, r"over has 'rate'; trials may differ in schedule, seed, rule"),
        ({"rule": []}, r"over\['rule'\] is empty"),
        ({"rule": [0.1]}, r"over\['rule'\]\[0\]"),
        ({"schedule": []}, r"over\['schedule'\] is empty"),
        ({"schedule": [round_robin(9, 3)]}, r"give either a schedule, or several"),
        ({"seed": [-1]}, r"over\['seed'\]=-1 must be a whole number"),
    ],
)
def test_what_cannot_be_varied_is_refused(over, message):
    table = dbjax.schedule(task_of(2), config(0.01), CLUSTER)
    with pytest.raises(ValueError, match=message):
        dbjax.run_many(task_of(2), config(0.01), table, over=over)
