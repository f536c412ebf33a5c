"""EASGD, top-k compression and SSP: plain references, identities, laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, easgd, ssp, top_k
from dbjax.data import ArrayExamples
from dbjax.data.stream import Stream
from dbjax.optim import compression

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(240, 6)).astype(np.float32)
Y = (X @ RANDOM.normal(size=6).astype(np.float32)).astype(np.float32)
RATE = 0.05


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] - y) ** 2)


TASK = dbjax.Task({"w": jnp.zeros(6)}, loss, (X, Y), batch_size=8)
SLOW = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, machines={"replica/2": dbjax.Machine(speed=0.2)}
)


def final(config, **kwargs):
    return np.asarray(dbjax.run(TASK, config, **kwargs).params["w"])


def batch(step, replica=0, replicas=1):
    return Stream(ArrayExamples((X, Y)), 8, 0, replica, replicas).at(step)


def gradient(w, step):
    x, y = batch(step)
    return x.T @ (x @ w - y) / len(x)


# EASGD


@pytest.mark.parametrize(("period", "steps"), [(1, 5), (3, 7), (4, 8)])
def test_easgd_of_one_replica_is_the_plain_loop(period, steps):
    """Algorithm 1 of Zhang et al., line by line; the worker meets the center at its end."""
    x, center, alpha = np.zeros(6), np.zeros(6), 0.6
    for step in range(steps):
        computed_at = x
        if step % period == 0:  # nothing moves at step 0
            x, center = x - alpha * (x - center), center + alpha * (x - center)
        x = x - RATE * gradient(computed_at, step)
    center = center + alpha * (x - center)
    config = easgd.Config(
        optax.sgd(RATE), replicas=1, shards=2, beta=alpha, period=period, steps=steps
    )
    np.testing.assert_allclose(final(config), center, rtol=1e-5, atol=1e-6)
    other = dataclasses.replace(config, beta=0.5)
    assert not np.allclose(final(other), center, rtol=1e-3)


def test_easgd_whose_center_takes_everything_is_downpour_between_periods():
    """With beta = 1 a single replica hands all its steps over: the same as local SGD."""
    x = np.zeros(6)
    for step in range(6):
        x = x - RATE * gradient(x, step)
    config = easgd.Config(optax.sgd(RATE), replicas=1, shards=1, beta=1.0, period=6, steps=6)
    np.testing.assert_allclose(final(config), x, rtol=1e-5, atol=1e-6)


def test_easgd_loses_no_push():
    config = easgd.Config(optax.sgd(RATE), replicas=3, shards=2, period=4, steps=10)
    summary = dbjax.run(TASK, config, cluster=SLOW).summary
    assert (summary["updates"], summary["lost_pushes"]) == (3 * 3, 0)


@pytest.mark.parametrize(("steps", "period"), [(10, 4), (42, 4), (3, 8)])
def test_easgd_counts_every_example_once(steps, period):
    config = easgd.Config(optax.sgd(RATE), replicas=2, shards=1, period=period, steps=steps)
    assert dbjax.run(TASK, config, cluster=SLOW).summary["examples"] == 2 * steps * 8


FAILING = dbjax.Machine(
    law="lognormal", sigma=0.3, mean_time_between_failures_s=3.0, mean_time_to_repair_s=0.3
)


@pytest.mark.parametrize("seed", range(5))
def test_easgd_takes_every_step_though_replicas_fail(seed):
    """With backups no push is lost, so a replica repeats steps and skips none."""
    trace = dbjax.Trace()
    cluster = dbjax.Cluster(
        compute_s=0.1, latency_s=1e-3, machines={"replica/*": FAILING}, seed=seed
    )
    config = easgd.Config(optax.sgd(RATE), replicas=3, shards=2, period=4, steps=22)
    summary = dbjax.run(TASK, config, cluster=cluster, trace=trace).summary
    steps = {(row["node"], row["step"]) for row in trace.rows if "step" in row}
    assert summary["deaths"] > 0
    assert steps == {(f"replica/{r}", step) for r in range(3) for step in range(22)}
    assert (summary["updates"], summary["lost_pushes"]) == (3 * 6, 0)


@pytest.mark.parametrize("method", [easgd, ssp, top_k, downpour])
def test_a_run_that_ends_by_time_has_lost_no_push(method):
    for until_s in (0.55, 1.0, 1.35, 2.05):
        config = method.Config(optax.sgd(RATE), replicas=3, shards=2)
        summary = dbjax.run(TASK, config, cluster=SLOW, until_s=until_s).summary
        assert (summary["lost_pushes"], summary["warnings"]) == (0, [])


@pytest.mark.parametrize("method", [easgd, ssp, top_k])
def test_a_run_that_ended_is_resumed_without_a_step_left(method, tmp_path):
    config = method.Config(optax.sgd(RATE), replicas=2, shards=1, steps=8)
    with dbjax.Checkpoints(tmp_path) as checkpoints:
        first = dbjax.run(TASK, config, runtime="threads", checkpoints=checkpoints)
        again = dbjax.run(TASK, config, runtime="threads", resume=checkpoints.latest())
    assert again.summary["params_sha256"] == first.summary["params_sha256"]


# Top-k


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_top_k_passes_a_gradient_on_that_is_not_finite_and_keeps_its_error(bad, share):
    gradient = ({"a": jnp.array([1.0, bad, 2.0])},)
    error = ({"a": jnp.array([0.5, 0.25, 0.125])},)
    pushed, left = compression.top_k(gradient, error, share)
    np.testing.assert_array_equal(pushed[0]["a"], gradient[0]["a"])
    np.testing.assert_array_equal(left[0]["a"], error[0]["a"])


def test_top_k_of_nothing_is_nothing():
    pushed, left = compression.top_k(({"a": jnp.zeros((0, 3)), "b": jnp.ones(2)},), None, 0.5)
    assert pushed[0]["a"].shape == left[0]["a"].shape == (0, 3)
    assert compression.kept_entries(jnp.zeros((0, 3)), 0.5) == 0


def test_a_place_takes_four_bytes_and_a_leaf_no_more_than_all_of_it():
    leaves = {
        "double": np.zeros(100, np.float64), "half": np.zeros(100, np.float16), "one": np.zeros(()),
    }  # fmt: skip
    assert compression.sparse_bytes(leaves, 0.01, 1) == (8 + 4) + (2 + 4) + 8
    assert compression.sparse_bytes(leaves, 0.5, 2) == 800 + 200 + 8


def test_what_is_pushed_and_what_is_left_are_all_of_it():
    gradient = ({"a": jnp.array([3.0, -5.0, 1.0, 0.5]), "b": jnp.array(2.0)},)
    error = jax.tree.map(jnp.ones_like, gradient)
    pushed, left = compression.top_k(gradient, error, 0.5)
    np.testing.assert_array_equal(pushed[0]["a"], [4.0, -4.0, 0.0, 0.0])
    np.testing.assert_array_equal(left[0]["a"], [0.0, 0.0, 2.0, 1.5])
    assert (pushed[0]["b"], left[0]["b"]) == (3.0, 0.0)


def test_top_k_of_everything_is_downpour():
    whole = top_k.Config(optax.sgd(RATE), replicas=3, shards=2, share=1.0, steps=20)
    plain = downpour.Config(optax.sgd(RATE), replicas=3, shards=2, steps=20)
    np.testing.assert_array_equal(final(whole, cluster=SLOW), final(plain, cluster=SLOW))
    half = dataclasses.replace(whole, share=0.5)
    assert not np.array_equal(final(half, cluster=SLOW), final(plain, cluster=SLOW))


def test_top_k_of_one_replica_is_the_plain_loop():
    w, error = np.zeros(6), np.zeros(6)
    for step in range(12):
        total = gradient(w, step) + error
        kept = np.abs(total) >= np.sort(np.abs(total))[-2]
        error = np.where(kept, 0, total)
        w = w - RATE * np.where(kept, total, 0)
    config = top_k.Config(optax.sgd(RATE), replicas=1, shards=1, share=2 / 6, steps=12)
    np.testing.assert_allclose(final(config), w, rtol=1e-5, atol=1e-6)


def test_top_k_pushes_are_small():
    def pushed(share):
        config = top_k.Config(optax.sgd(RATE), replicas=1, shards=1, share=share, steps=4)
        return dbjax.run(TASK, config).summary["bytes_pushed"]

    assert pushed(2 / 6) == 4 * 2 * 8  # a number and its place, for each of two entries
    assert pushed(1.0) == 4 * 6 * 4  # dense


# SSP


def most_ahead(config):
    """The largest number of steps that one replica had recorded beyond the slowest."""
    trace = dbjax.Trace()
    dbjax.run(TASK, config, cluster=SLOW, trace=trace)
    done, found = dict.fromkeys((f"replica/{r}" for r in range(config.replicas)), 0), 0
    for row in trace.rows:
        if "step" in row:
            done[row["node"]] += 1
            found = max(found, max(done.values()) - min(done.values()))
    return found


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_replica_is_further_ahead_than_the_bound(bound):
    """A replica that may be `bound` pushes ahead computes one more step before it waits."""
    config = ssp.Config(optax.sgd(RATE), replicas=3, shards=2, bound=bound, steps=30)
    assert most_ahead(config) == bound + 1
    assert most_ahead(dataclasses.replace(config, bound=1_000)) > 10


def test_ssp_without_a_bound_that_matters_is_downpour():
    loose = ssp.Config(optax.sgd(RATE), replicas=3, shards=2, bound=1_000, steps=20)
    plain = downpour.Config(optax.sgd(RATE), replicas=3, shards=2, steps=20)
    np.testing.assert_array_equal(final(loose, cluster=SLOW), final(plain, cluster=SLOW))
    tight = dataclasses.replace(loose, bound=0)
    assert not np.array_equal(final(tight, cluster=SLOW), final(plain, cluster=SLOW))


@pytest.mark.parametrize("backups", [0, 1])
def test_ssp_goes_on_after_deaths_of_shards_and_replicas(backups):
    failures = (dbjax.Failure("shard/0", 1.0, 1.5), dbjax.Failure("replica/1", 2.0, 2.4))
    cluster = dataclasses.replace(SLOW, failures=failures)
    config = ssp.Config(
        optax.sgd(RATE), replicas=3, shards=2, bound=1, steps=30, shard_backups=backups
    )
    summary = dbjax.run(TASK, config, cluster=cluster).summary
    assert summary["deaths"] == 2
    assert summary["lost_pushes"] == 0 or not backups


@pytest.mark.parametrize("backups", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_ssp_does_not_stop_though_everything_fails(seed, backups):
    """Without the clocks in the backup's state, these runs stood still."""
    machine = dataclasses.replace(FAILING, mean_time_between_failures_s=4.0)
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=1e-3, machine=machine, seed=seed)
    config = ssp.Config(
        optax.sgd(RATE), replicas=3, shards=2, bound=0, steps=30, shard_backups=backups
    )
    summary = dbjax.run(TASK, config, cluster=cluster, until_s=60.0).summary
    assert summary["deaths"] > 2
    assert summary["time_s"] < 60.0


def test_ssp_does_not_wait_for_who_has_ended_where_a_shard_has_lost_pushes_of_it():
    """Replicas 0 and 1 end 3 pushes ahead of replica 2; the shard returns without their last."""
    config = ssp.Config(optax.sgd(RATE), replicas=3, shards=1, bound=3, steps=30)
    calm = dbjax.run(TASK, config, cluster=SLOW).summary
    failures = (dbjax.Failure("shard/0", 14.0, 14.2),)
    cluster = dataclasses.replace(SLOW, failures=failures)
    summary = dbjax.run(TASK, config, cluster=cluster, checkpoint_every=dbjax.Every(10.0)).summary
    assert (calm["updates"], calm["lost_pushes"]) == (90, 0)
    assert summary["lost_pushes"] == 90 - summary["updates"] > 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ssp.Config(bound=-1), "ssp.bound=-1 must be at least 0"),
        (lambda: top_k.Config(share=0), "top_k.share=0 must be above 0"),
        (lambda: top_k.Config(share=1.5), "top_k.share=1.5 must be at most 1"),
        (lambda: easgd.Config(period=0), "easgd.period=0 must be at least 1"),
        (lambda: easgd.Config(beta=2), "easgd.beta=2 must be at most 1"),
        (lambda: ssp.Config(n_fetch=0), "ssp.n_fetch=0 must be at least 1"),
        (lambda: ssp.Config(shard_backups=2), "ssp.shard_backups=2 must be 0 or 1"),
        (lambda: easgd.Config(steps=0), "easgd.steps=0 must be at least 1"),
        (lambda: ssp.Config(overlap=True), "set overlap=False and n_fetch to at most n_push=1"),
        (lambda: ssp.Config(n_fetch=4, n_push=2), "n_fetch=4: the bound holds only if"),
    ],
)
def test_bad_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
