"""How long Sandblaster takes (proof 14, backup copies), and what travels (proof 12)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import dbjax
from dbjax.algorithms import sandblaster
from dbjax.algorithms.sandblaster.replica import Replica
from dbjax.optim import Stops
from tests.algorithms.logistic import NEVER, run


def batch_time_s(cluster, *, portions=64, replicas=8, **kwargs):
    """Virtual seconds of one evaluation."""
    result = run(
        cluster, batch_size=192 // portions, replicas=replicas, steps=1,
        stops=Stops(gradient_norm=math.inf), **kwargs,
    )  # fmt: skip
    assert result.summary["evaluations"] == 1
    return result.summary["time_s"]


SLOW = dbjax.Cluster(compute_s=1.0, machines={"replica/3": dbjax.Machine(speed=1 / 50)})


def test_backups_save_a_batch_from_a_replica_that_is_50_times_slower():
    with_backups = batch_time_s(SLOW, backup_after=1.5)
    without = batch_time_s(SLOW, backup_after=math.inf)
    assert without >= 4 * with_backups
    assert run(SLOW, order="fixed").summary["backups"]["won"] >= 1
    digests = {run(SLOW, order="fixed", backup_after=after).summary["params_sha256"]
               for after in (1.5, math.inf)}  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize(("replicas", "portions"), [(8, 64), (16, 64), (24, 48)])
@pytest.mark.parametrize("steps", [1, 4])
def test_backups_cost_little_where_speeds_are_equal(sigma, replicas, portions, steps):
    def mean_s(backup_after):
        machine = dbjax.Machine(law="lognormal", sigma=sigma) if sigma else dbjax.Machine()
        clusters = [dbjax.Cluster(compute_s=1.0, latency_s=1e-3, machine=machine, seed=seed)
                    for seed in range(8)]  # fmt: skip
        given = {"batch_size": 192 // portions, "replicas": replicas, "steps": steps}
        return np.mean([run(cluster, backup_after=backup_after, **given).summary["time_s"]
                        for cluster in clusters])  # fmt: skip

    assert mean_s(1.5) < 1.1 * mean_s(math.inf)


@pytest.mark.parametrize("seed", range(5))
def test_14_greedy_portions_keep_their_bound_and_beat_a_static_split(seed):
    speeds = np.random.default_rng(seed).uniform(0.2, 2.0, size=6)
    machines = {f"replica/{r}": dbjax.Machine(speed=v) for r, v in enumerate(speeds)}
    cluster = dbjax.Cluster(compute_s=1.0, machines=machines)
    greedy = {"prefetch": 0, "backup_after": math.inf, "replicas": 6}
    took_s = batch_time_s(cluster, portions=96, **greedy)
    assert 96 / speeds.sum() <= took_s <= (96 - 1) / speeds.sum() + 1 / speeds.min()
    static_s = 96 / 6 / speeds.min()
    assert took_s < static_s


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_14_the_first_of_n_copies_takes_one_nth_of_an_exponential_time(replicas):
    def mean(backup_after):
        clusters = [dbjax.Cluster(machine=dbjax.Machine(law="exponential"), seed=seed)
                    for seed in range(400)]  # fmt: skip
        kwargs = {"portions": 1, "replicas": replicas, "backup_after": backup_after, "shards": 1}
        return np.mean([batch_time_s(cluster, **kwargs) for cluster in clusters])

    error = 3.5 / math.sqrt(400)  # of a mean of 400 exponential times, relative
    assert mean(0.0) == pytest.approx(1 / replicas, rel=error)  # H_n - H_(n-1)
    if replicas > 1:
        assert mean(math.inf) > 1.5 / replicas


def test_14_the_last_of_n_portions_takes_the_harmonic_number():
    times = [batch_time_s(dbjax.Cluster(machine=dbjax.Machine(law="exponential"), seed=seed),
                          portions=4, replicas=4, backup_after=math.inf, shards=1)
             for seed in range(400)]  # fmt: skip
    deviation = math.sqrt(1 + 1 / 4 + 1 / 9 + 1 / 16)
    assert np.mean(times) == pytest.approx(25 / 12, abs=3.5 * deviation / 20)


def test_parameters_are_fetched_once_an_evaluation_and_gradients_sent_every_few_portions():
    trace = dbjax.Trace(max_spans=100_000)
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=1e-4)
    result = run(cluster, send_every=3, backup_after=math.inf, prefetch=0, trace=trace)
    calls = [(span.node, span.kind) for span in trace.spans]
    evaluations = result.summary["evaluations"]
    assert calls.count(("shard/0", "fetch")) == 4 * evaluations
    assert calls.count(("shard/0", "accumulate")) == 4 * 4 * evaluations  # 48 portions / 4 / 3
    assert result.summary["portions"] == 48 * evaluations


def test_consecutive_portions_go_to_the_same_replica_again_and_again(monkeypatch):
    did = {}
    process_portion = Replica.process_portion

    def watched(self, evaluation, total, portion):
        did.setdefault(evaluation, {}).setdefault(self._node.name, []).append(portion)
        return process_portion(self, evaluation, total, portion)

    watched.__name__ = "process_portion"
    monkeypatch.setattr(Replica, "process_portion", watched)
    slow = dbjax.Cluster(compute_s=0.1, machines={"replica/0": dbjax.Machine(speed=0.5)})
    run(slow, replicas=2, backup_after=math.inf, prefetch=0)
    first, second, *others = did.values()
    assert first["replica/0"] == list(range(16))  # a third of what both do together
    assert first["replica/1"] == [*range(24, 48), *range(23, 15, -1)]  # and then steals
    assert second == {"replica/0": list(range(16)), "replica/1": list(range(16, 48))}
    assert all(later == second for later in others)


def coordinator_bytes(size):
    """Per iteration, of a problem that takes the same steps in any dimension."""
    params = jnp.full(size, size**-0.5, jnp.float32)  # of length 1

    def bowl(w, batch):
        return jnp.mean(batch) * jnp.sum(jnp.square(w) * (1 + (jnp.arange(size) % 2)))

    given = dbjax.Task(params, bowl, np.ones(8, np.float32), batch_size=4)
    config = sandblaster.Config(replicas=2, shards=3, steps=2, stops=NEVER)
    return dbjax.run(given, config).summary["coordinator"]


@pytest.mark.parametrize(
    "size", [300_000, pytest.param(42_000_000, marks=pytest.mark.slow)]
)  # fmt: skip
def test_12_the_coordinator_moves_the_same_bytes_whatever_the_size(size):
    small = coordinator_bytes(1_000)
    assert small == coordinator_bytes(size)
    assert small["bytes_per_iteration"] < 20_000
