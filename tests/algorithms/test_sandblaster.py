"""Algorithm 1.2: exactly the batch method of one process, whatever happens to the cluster."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dbjax
from dbjax.algorithms import sandblaster
from dbjax.optim import ConjugateGradients, GradientDescent, Lbfgs, Stops
from dbjax.runtime.cluster import Failure
from tests.algorithms.logistic import (
    CLUSTERS,
    DYING,
    UNEVEN,
    difference,
    one_process,
    run,
)


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
        ({"stops": Stops(iterations=9)}, "set steps instead"),
    ):
        with pytest.raises(ValueError, match=text):
            sandblaster.Config(**kwargs)
