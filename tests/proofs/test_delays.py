"""Proofs 1-6 and 9: what delays do to gradient descent, through the public path.

A quadratic loss 0.5 * lambda * w^2 needs no data; the data given is a dummy.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.optim import downpour_adagrad
from tests.references import delayed_descent, optax_loop

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(120, 6)).astype(np.float32)
Y = (X @ RANDOM.normal(size=6).astype(np.float32)).astype(np.float32)


def regression(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


TASK = dbjax.Task({"w": jnp.zeros(6), "b": jnp.zeros(())}, regression, (X, Y), batch_size=8)


def quadratic(params, batch):
    return 0.5 * jnp.sum(params**2)  # curvature 1: a = lr


DESCENT = dbjax.Task(jnp.ones(2, jnp.float32), quadratic, np.zeros(1000, np.float32), batch_size=1)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("rule", [optax.sgd(0.1), downpour_adagrad(0.1)], ids=["sgd", "adagrad"])
def test_1_one_replica_is_the_plain_loop_on_every_runtime(rule):
    expected = optax_loop(TASK, rule, 30)
    config = downpour.Config(rule=rule, replicas=1, shards=1, steps=30)
    assert same(dbjax.run(TASK, config).params, expected)
    assert same(dbjax.run(TASK, config, runtime="threads").params, expected)
    assert same(dbjax.run(TASK, sgd.Config(rule=rule, steps=30)).params, expected)
    assert not same(optax_loop(TASK, rule, 29), expected)  # the sibling that differs


@pytest.mark.parametrize("rule", [optax.sgd(0.1), downpour_adagrad(0.1)], ids=["sgd", "adagrad"])
def test_2_the_number_of_shards_changes_no_bit(rule):
    def run(shards, **kwargs):
        config = downpour.Config(rule=rule, replicas=4, shards=shards, steps=10)
        return dbjax.run(TASK, config, **kwargs).params

    assert same(run(1), run(2))
    assert same(run(1), run(7))
    # without atomic fetches they may differ: pushes reach the shards in different orders
    torn = dbjax.Cluster(
        latency_s=0.01,
        service_s=0.02,
        machines={"shard/0": dbjax.Machine()},
        machine=dbjax.Machine(law="lognormal", sigma=0.5, bandwidth_bytes_per_s=500.0),
    )
    assert not same(run(7, cluster=torn), run(1, cluster=torn))


EDGES = {0: 2.0, 1: 1.0, 2: 0.618034, 3: 0.445042, 4: 0.3473, 5: 0.28463, 10: 0.14946}


@pytest.mark.parametrize("tau", EDGES)
def test_3_delayed_descent_is_stable_up_to_the_edge(tau):
    edge = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    assert edge == pytest.approx(EDGES[tau], rel=1e-4)

    def size(a):
        config = downpour.Config(
            rule=optax.sgd(a), replicas=tau + 1, shards=1, steps=200 * (tau + 1)
        )
        result = dbjax.run(DESCENT, config)
        # after the first round, in which all replicas start together
        assert result.summary["staleness_updates"]["max"] == tau
        return float(jnp.max(jnp.abs(result.params)))

    assert size(0.97 * edge) < 0.1
    assert not size(1.03 * edge) < 10.0


@pytest.mark.parametrize("tau", [1, 4])
def test_3_the_fastest_rate_is_tau_over_tau_plus_1(tau, float64):
    best = tau**tau / (tau + 1) ** (tau + 1)

    def shrink(a):
        """How much one update shrinks the error, from updates 300 to 400."""
        task = dbjax.Task(jnp.ones(()), quadratic, np.zeros(1000), batch_size=1)
        ends = [
            float(dbjax.run(
                task, downpour.Config(
                    rule=optax.sgd(a), replicas=tau + 1, shards=1, steps=n // (tau + 1)),
            ).params)
            for n in (300, 400)
        ]  # fmt: skip
        return (ends[1] / ends[0]) ** (1 / 100)

    # at the best rate the root is double: the error falls as n * rate^n
    double = (400 / 300) ** (1 / 100)
    assert shrink(best) == pytest.approx(tau / (tau + 1) * double, rel=2e-3)
    assert shrink(0.7 * best) > tau / (tau + 1) * double * 1.01


@pytest.mark.parametrize(
    ("replicas", "k"), [(3, 1), (3, 5), (4, 5), (8, 1), pytest.param(8, 20, marks=pytest.mark.slow)]
)
def test_4_local_steps_move_the_edge(replicas, k):
    reach = 2 * math.sin(math.pi / (2 * (2 * replicas - 1)))  # of 1 - (1 - a)^k
    edge = 1 - (1 - reach) ** (1 / k)

    def size(a):
        config = downpour.Config(
            rule=optax.sgd(a),
            replicas=replicas,
            shards=1,
            n_fetch=k,
            n_push=k,
            steps=150 * replicas * k,
        )
        return float(jnp.max(jnp.abs(dbjax.run(DESCENT, config).params)))

    assert size(0.96 * edge) < 0.2
    assert not size(1.04 * edge) < 5.0


MOMENTUM_EDGES = {
    (0.9, 0): 3.8, (0.9, 1): 0.1, (0.9, 2): 0.0512, (0.9, 4): 0.0265,
    (0.5, 0): 3.0, (0.5, 1): 0.5, (0.5, 2): 0.2808, (0.5, 4): 0.1559,
}  # fmt: skip


@pytest.mark.parametrize(("momentum", "tau"), MOMENTUM_EDGES)
def test_5_momentum_bears_little_delay(momentum, tau):
    edge = MOMENTUM_EDGES[momentum, tau]

    def size(a):
        config = downpour.Config(
            rule=optax.sgd(a, momentum=momentum), replicas=tau + 1, shards=1, steps=1500
        )
        return float(jnp.max(jnp.abs(dbjax.run(DESCENT, config).params)))

    assert size(0.95 * edge) < 0.1
    assert not size(1.05 * edge) < 10.0


def test_delayed_descent_is_the_recursion_itself(float64):
    config = downpour.Config(rule=optax.sgd(0.2), replicas=4, shards=1, steps=25)
    task = dbjax.Task(jnp.ones(()), quadratic, np.zeros(100), batch_size=1)
    got = float(dbjax.run(task, config).params)
    assert got == pytest.approx(delayed_descent(0.2, tau=3, updates=100), rel=1e-12)
    assert got != pytest.approx(delayed_descent(0.2, tau=2, updates=100), rel=1e-3)


def test_6_delays_sum_to_m_minus_1_a_push():
    replicas, steps = 5, 40
    config = downpour.Config(rule=optax.sgd(0.01), replicas=replicas, shards=2, steps=steps)
    result = dbjax.run(TASK, config)
    total = replicas * steps
    # round robin, all start together: the first round has delays 0, 1, .. M - 1, and
    # every later push exactly M - 1; at the end none is in flight
    mean = ((replicas - 1) * total - sum(range(replicas))) / total
    assert result.summary["staleness_updates"]["mean"] == mean
    assert result.summary["staleness_updates"]["max"] == replicas - 1


schedules = st.builds(
    dbjax.Cluster,
    compute_s=st.sampled_from([0.01, 0.1]),
    latency_s=st.sampled_from([0.0, 0.01]),
    service_s=st.sampled_from([0.0, 0.003]),
    machine=st.just(dbjax.Machine(bandwidth_bytes_per_s=1e9)),
    machines=st.fixed_dictionaries({"replica/*": st.builds(
        dbjax.Machine, law=st.just("lognormal"), sigma=st.sampled_from([0.1, 1.0]),
        bandwidth_bytes_per_s=st.sampled_from([500.0, 1e9]),
        mean_time_between_failures_s=st.sampled_from([0.5, math.inf]),
        mean_time_to_repair_s=st.just(0.2))}),
    seed=st.integers(0, 99),
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    cluster=schedules,
    n_fetch=st.integers(1, 3),
    n_push=st.integers(1, 3),
    overlap=st.booleans(),
    warm_up=st.integers(0, 5),
)
def test_6_and_9_hold_for_any_schedule(cluster, n_fetch, n_push, overlap, warm_up):
    """`run` checks itself that every update is booked once, and raises if not."""
    config = downpour.Config(
        rule=optax.sgd(0.125),
        replicas=3,
        shards=2,
        n_fetch=n_fetch,
        n_push=n_push,
        overlap=overlap,
        warm_start_updates=warm_up,
    )
    # the gradient of -sum(w) is -1: every pushed gradient is counted by the parameters
    task = dbjax.Task(jnp.zeros(4), lambda w, batch: -jnp.sum(w), np.zeros(50), batch_size=1)
    result = dbjax.run(task, config, cluster=cluster, until_s=1.5)
    assert float(jnp.min(result.params)) == 0.125 * result.summary["examples"]  # exact in binary
    assert result.summary["examples"] <= float(jnp.max(result.params)) / 0.125


def test_6_the_check_can_fail(monkeypatch):
    """It sees an update that nobody booked; versions by hand: tests/store/test_delays.py."""
    from dbjax.parameter_server import StalenessAccounting

    booked = StalenessAccounting.applied

    def all_but_the_second(self, replica, computed_at, version):
        if version != 1:
            booked(self, replica, computed_at, version)

    monkeypatch.setattr(StalenessAccounting, "applied", all_but_the_second)
    with pytest.raises(RuntimeError, match="an update is missing in the accounts"):
        dbjax.run(TASK, downpour.Config(replicas=3, steps=5))


def test_6_a_version_that_the_replica_never_had_is_refused(monkeypatch):
    from dbjax.parameter_server import StalenessAccounting

    right = StalenessAccounting.fetched
    monkeypatch.setattr(
        StalenessAccounting,
        "fetched",
        lambda self, replica, version: right(self, replica, max(0, version - 1)),
    )
    with pytest.raises(Exception, match="never fetched"):
        dbjax.run(TASK, downpour.Config(replicas=3, steps=5))
