"""Algorithm 1.2: exactly the batch method of one process, whatever happens to the cluster."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbjax
from dbjax.algorithms import sandblaster
from dbjax.algorithms.sandblaster.assignment import Assignment
from dbjax.algorithms.sandblaster.replica import Replica
from dbjax.algorithms.sandblaster.samples import samples
from dbjax.optim import ConjugateGradients, GradientDescent, Lbfgs, Stops, Wolfe, minimise
from dbjax.runtime.cluster import Failure

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(192, 9))
LABELS = (X @ RANDOM.normal(size=9) + RANDOM.normal(size=192) > 0).astype(np.int32)
NEVER = Stops(0.0, -1.0)


def loss(params, batch):
    """l2-regularised logistic regression; mean over the batch."""
    x, labels = batch
    logits = x @ params["w"] + params["b"]
    data = jnp.mean(jnp.logaddexp(0, logits) - labels * logits)
    return data + 0.05 * (jnp.sum(params["w"] ** 2) + params["b"] ** 2)


def task(batch_size=4):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    params = {"b": jnp.zeros((), dtype), "w": jnp.zeros(9, dtype)}
    return dbjax.Task(params, loss, (X.astype(dtype), LABELS), batch_size)


def run(cluster=None, runtime="virtual", until_s=None, batch_size=4, trace=None, **kwargs):
    given = {"replicas": 4, "shards": 2, "steps": 8, "stops": NEVER, "backup_after": 1.0}
    config = sandblaster.Config(**given | kwargs)
    return dbjax.run(
        task(batch_size), config, runtime=runtime, cluster=cluster, until_s=until_s, trace=trace
    )


def one_process(batch_size=4, steps=8, method=None):
    """The same method on one pytree; gradients summed over portions, in order."""
    given = task(batch_size)
    data = given.portions

    @jax.jit
    def portion(params, batch, weight):
        return jax.value_and_grad(lambda p: weight * loss(p, batch))(params)

    def value_and_grad(params):
        total = data.size_of(range(data.count))
        sums = [portion(params, data.gather((i,)), data.size_of((i,)) / total)
                for i in range(data.count)]  # fmt: skip
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)

    stops = dataclasses.replace(NEVER, iterations=steps)
    return minimise(None, given.params, method, stops, value_and_grad=value_and_grad)[0]


def difference(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


UNEVEN = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, service_s=1e-4, seed=3,
    machine=dbjax.Machine(law="exponential", bandwidth_bytes_per_s=1e6),
    machines={"replica/1": dbjax.Machine(speed=1 / 50)})  # fmt: skip
DYING = dataclasses.replace(
    UNEVEN,
    machines={"replica/*": dbjax.Machine(
        law="exponential", mean_time_between_failures_s=1.5, mean_time_to_repair_s=0.5)},
)  # fmt: skip
CLUSTERS = {"even": None, "uneven": UNEVEN, "dying": DYING}


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("replicas", [1, 5])
def test_13_in_fixed_order_the_bytes_are_those_of_one_process(cluster, replicas):
    result = run(CLUSTERS[cluster], shards=1, replicas=replicas, order="fixed")
    expected = one_process()
    assert all(np.array_equal(result.params[k], expected[k]) for k in expected)
    other = one_process(batch_size=6)
    assert not all(np.array_equal(result.params[k], other[k]) for k in expected)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("order", ["free", "fixed"])
@pytest.mark.parametrize("method", [Lbfgs(), Lbfgs(vector_free=False), ConjugateGradients(),
                                    GradientDescent()], ids=lambda m: type(m).__name__)  # fmt: skip
def test_13_equals_one_process(cluster, order, method, float64):
    # a search that interpolates divides differences of losses, and so their rounding, by steps
    error = 1e-12 if isinstance(method, Lbfgs) else 1e-8
    given = {"order": order, "method": method, "steps": 5}
    result = run(CLUSTERS[cluster], replicas=5, shards=3, **given)
    assert difference(result.params, one_process(method=method, steps=5)) < error
    assert difference(result.params, one_process(method=method, steps=4)) > 1e3 * error


def test_13_threads_in_fixed_order_leave_the_same_bytes():
    digests = {
        run(runtime=runtime, replicas=replicas, order="fixed").summary["params_sha256"]
        for runtime, replicas in (("threads", 1), ("threads", 3), ("virtual", 2))
    }
    assert len(digests) == 1


def test_13_threads_in_free_order(float64):
    assert difference(run(runtime="threads", replicas=3).params, one_process()) < 1e-12


def test_deaths_happen_in_that_test_and_lose_what_was_not_sent():
    summary = run(DYING, replicas=5, order="fixed").summary
    assert summary["replicas_lost"] > 5
    assert summary["returns"] > 3


@pytest.mark.parametrize("order", ["free", "fixed"])
@pytest.mark.parametrize("at_s", [0.9, 3.21, 7.4, 11.0])
def test_a_coordinator_that_returns_goes_on_after_its_last_iteration(at_s, order, float64):
    cluster = dataclasses.replace(
        UNEVEN, machines={}, failures=(Failure("coordinator", at_s, at_s + 0.7),)
    )
    trace = dbjax.Trace()
    result = run(cluster, order=order, trace=trace)
    assert result.summary["deaths"] == result.summary["returns"] == 1
    assert difference(result.params, one_process()) < 1e-12
    steps = [row["step"] for row in trace.rows if "step" in row]
    assert steps == sorted(steps)
    assert steps[-1] == 8
    assert len(set(steps)) >= len(steps) - 1  # at most the last one is done again


@pytest.mark.parametrize("until_s", [2.55, 2.65, 2.75, 5.0])
def test_a_run_may_end_while_the_coordinator_is_dead_or_just_back(until_s):
    cluster = dbjax.Cluster(compute_s=0.1, failures=(Failure("coordinator", 2.5, 2.6),))
    summary = run(cluster, until_s=until_s).summary
    assert summary["deaths"] == 1
    assert summary["stopped_because"] == "the run's time was over"
    # 12 portions of 0.1 s an evaluation: 1.2, 2.4, then from 2.6 on again, 3.8, 5.0
    assert summary["iterations"] == (1 if until_s < 5 else 3)


def test_a_run_may_end_before_the_first_evaluation_does():
    summary = run(dbjax.Cluster(compute_s=0.1), until_s=0.05).summary
    assert (summary["iterations"], summary["evaluations"], summary["updates"]) == (0, 0, 0)
    assert math.isnan(summary["train_loss"])


def test_what_was_given_up_is_not_counted_twice():
    quiet = {"backup_after": math.inf, "order": "fixed"}
    deaths = (Failure("coordinator", 3.0, 3.1), Failure("coordinator", 3.25, 3.3))
    disturbed = run(dbjax.Cluster(compute_s=0.1, failures=deaths), **quiet).summary
    calm = run(dbjax.Cluster(compute_s=0.1), **quiet).summary
    assert disturbed["deaths"] == 2
    for name in ("portions", "evaluations", "iterations", "params_sha256"):
        assert disturbed[name] == calm[name]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_13_whatever_happens_the_bytes_are_the_same(data):
    draw = data.draw
    deaths = draw(st.lists(st.tuples(st.floats(0.01, 6), st.floats(0.01, 1)), max_size=3))
    repair_s = draw(st.sampled_from([0.2, 2.0]))
    cluster = dbjax.Cluster(
        compute_s=0.1, latency_s=draw(st.sampled_from([0.0, 1e-3, 0.05])),
        service_s=draw(st.sampled_from([0.0, 1e-3])), seed=draw(st.integers(0, 99)),
        machine=dbjax.Machine(law=draw(st.sampled_from(["constant", "exponential"])),
                              bandwidth_bytes_per_s=draw(st.sampled_from([math.inf, 1e4]))),
        machines={"replica/1": dbjax.Machine(speed=0.05), "replica/*": dbjax.Machine(
            mean_time_between_failures_s=draw(st.sampled_from([math.inf, 3.0])),
            mean_time_to_repair_s=repair_s)},
        failures=tuple(Failure("coordinator", at, at + back) for at, back in deaths),
    )  # fmt: skip
    result = run(
        cluster, order="fixed", shards=draw(st.sampled_from([1, 3])), steps=4,
        replicas=draw(st.integers(2, 6)), prefetch=draw(st.integers(0, 3)),
        backup_after=draw(st.sampled_from([0.0, 1.0, 1.5, math.inf])),
    )  # fmt: skip
    assert difference(result.params, _four_steps()) < 1e-6  # shards add dot products apart
    assert result.summary["iterations"] == 4


@functools.cache
def _four_steps():
    return one_process(steps=4)


def test_a_dead_replica_that_never_returns_is_done_without():
    cluster = dbjax.Cluster(compute_s=0.1, failures=(Failure("replica/2", 0.25),))
    result = run(cluster, order="fixed", shards=1)
    assert (result.summary["deaths"], result.summary["returns"]) == (1, 0)
    assert all(np.array_equal(result.params[k], v) for k, v in one_process().items())


def test_when_all_are_dead_for_good_that_is_said():
    failures = tuple(Failure(f"replica/{r}", 0.25) for r in range(4))
    with pytest.raises(dbjax.errors.DeadlockError, match="coordinator waits for an answer"):
        run(dbjax.Cluster(compute_s=0.1, failures=failures))


# Time


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


# What travels


def test_parameters_are_fetched_once_an_evaluation_and_gradients_sent_every_few_portions():
    trace = dbjax.Trace(max_spans=100_000)
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=1e-4)
    result = run(cluster, send_every=3, backup_after=math.inf, prefetch=0, trace=trace)
    calls = [(span.node, span.kind) for span in trace.spans]
    evaluations = result.summary["evaluations"]
    assert calls.count(("shard/0", "fetch")) == 4 * evaluations
    assert calls.count(("shard/0", "accrue")) == 4 * 4 * evaluations  # 48 portions / 4 / 3
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


# Sub-sampled batches


def test_samples_overlap_and_go_around():
    found = samples(10, 0.6, 0.34)
    assert found.parts(0) == {"before": (0, 1), "only": (2, 3), "after": (4, 5)}
    assert found.parts(1) == {"before": (4, 5), "only": (6, 7), "after": (8, 9)}
    assert found.parts(2)["before"] == found.parts(1)["after"]
    assert samples(10, 1.0, 0.25).parts(7) == {"only": tuple(range(10))}
    with pytest.raises(ValueError, match=r"sandblaster\.sample"):
        samples(4, 0.5, 0.2)


@pytest.mark.parametrize("order", ["free", "fixed"])
def test_fresh_samples_with_overlap_come_close_to_the_minimum(order, float64):
    full = one_process(steps=40)
    best = float(loss(full, (X, LABELS)))
    start = float(loss(task().params, (X, LABELS)))
    result = run(UNEVEN, sample=0.5, overlap=0.25, steps=40, order=order)
    reached = float(loss(result.params, (X, LABELS)))
    assert reached - best < 0.1 * (start - best)
    assert result.summary["examples"] < 60 * 96  # half of the data for each evaluation


def test_an_uphill_step_over_another_sample_is_no_convergence(float64):
    result = run(sample=0.25, overlap=0.25, steps=30, stops=Stops())
    assert result.summary["stopped_because"] == "30 iterations"


@pytest.mark.parametrize(
    "method",
    [
        ConjugateGradients(first_step=1e3, wolfe=Wolfe(curvature=0.1, max_trials=2)),
        GradientDescent(first_step=1e4, wolfe=Wolfe(max_trials=1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_search_that_fails_over_a_sample_takes_a_shorter_step(method, float64):
    trace = dbjax.Trace()
    run(sample=0.25, overlap=0.25, steps=40, method=method, trace=trace)
    lengths = [row["step_length"] for row in trace.rows if row.get("step", 0) > 0]
    assert all(length > 0 for length in lengths)
    losses = [row["loss"] for row in trace.rows if "step" in row]
    assert losses[-1] < 0.1 * max(losses) or losses[-1] < losses[0]


def test_samples_do_not_depend_on_the_cluster():
    given = {"sample": 0.5, "overlap": 0.25, "order": "fixed", "steps": 6}
    digests = {run(cluster, **given).summary["params_sha256"] for cluster in CLUSTERS.values()}
    assert len(digests) == 1


# Bookkeeping


@settings(max_examples=60, deadline=None)
@given(data=st.data(), portions=st.integers(1, 12), replicas=st.integers(1, 4),
       send_every=st.integers(1, 3))  # fmt: skip
def test_every_portion_is_delivered_once_whoever_dies(data, portions, replicas, send_every):
    plan = {r: list(range(portions))[r::replicas] for r in range(replicas)}
    batch = Assignment({"only": tuple(range(portions))}, plan, send_every)
    working = {r: [] for r in range(replicas)}
    sending = {r: [] for r in range(replicas)}
    counted = []
    for _ in range(400):
        if batch.done():
            break
        replica = data.draw(st.integers(0, replicas - 1))
        action = data.draw(st.sampled_from(["work", "work", "work", "send", "copy",
                                            "die", "stuck", "fail"]))  # fmt: skip
        if action == "die" and len(counted) < portions:
            batch.lost(replica, sending[replica])
            working[replica], sending[replica] = [], []
        elif action == "copy" and batch.left() == 0:
            for other in range(replicas):
                for portion in working[other]:
                    if batch.copy(replica, portion):
                        working[replica].append(portion)
        elif action == "stuck" and working[replica]:
            batch.spare(replica)
        elif action == "fail" and working[replica]:
            batch.not_computed(replica, working[replica].pop())
        elif action == "send" and sending[replica]:
            done = sending[replica].pop()
            if batch.delivered(done):
                counted += done
        elif working[replica]:
            batch.computed(replica, working[replica].pop(0))
        elif (again := batch.take_again()) is not None:
            sending[replica].append(again)
        elif (portion := batch.take(replica)) is not None or (
            portion := batch.take_spare(replica)
        ) is not None:
            working[replica].append(portion)
        for one in range(replicas):
            sending[one] += batch.send(one, everything=not batch.left() and not working[one])
    while not batch.done():  # failures have stopped
        for replica in range(replicas):
            while working[replica]:
                batch.computed(replica, working[replica].pop())
            if (portion := batch.take(replica)) is not None:
                working[replica].append(portion)
            if (again := batch.take_again()) is not None:
                sending[replica].append(again)
            sending[replica] += batch.send(replica, everything=not batch.left())
            while sending[replica]:
                done = sending[replica].pop()
                if batch.delivered(done):
                    counted += done
    assert sorted(counted) == list(range(portions))


def test_bad_settings_are_refused():
    for kwargs, text in (
        ({"replicas": 0}, "sandblaster.replicas=0"),
        ({"send_every": 0}, "send_every=0"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"backup_after": -1.0}, "backup_after=-1.0"),
        ({"order": "any"}, "order='any'"),
        ({"sample": 0.0}, "sample=0.0"),
        ({"overlap": 0.7}, "overlap=0.7"),
        ({"steps": 0}, "steps=0"),
        ({"stops": Stops(iterations=9)}, "say steps instead"),
    ):
        with pytest.raises(ValueError, match=text):
            sandblaster.Config(**kwargs)
