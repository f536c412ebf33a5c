"""Runs that differ only in numbers share their timing, and others do not."""

import dataclasses
import signal

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.executors import timings
from dbjax.schedules.timing import TimedRun
from tests.schedules.drawn import task_of
from tests.schedules.test_executors import CLUSTER, Kept, OtherRules
from tests.schedules.test_same_bytes import plain

pytestmark = pytest.mark.usefixtures("worth_compiling")
METHOD = downpour.Config(optax.adagrad(0.05), replicas=3, shards=2, n_push=2, n_fetch=2, steps=12)


@pytest.fixture
def timed(monkeypatch):
    """The runs that were timed, as their arguments."""

    def noted(*args, **kwargs):
        found.append(args)
        return before(*args, **kwargs)

    found, before = [], timings.TimedRun
    monkeypatch.setattr(timings, "TimedRun", noted)
    monkeypatch.setattr(timings, "_latest", [])
    return found


def run(config=METHOD, task=None, **kwargs):
    kwargs = {"cluster": dataclasses.replace(CLUSTER, seed=3), "executor": "compiled"} | kwargs
    return dbjax.run(task or task_of(2), config, **kwargs)


def test_rates_seeds_and_initial_values_share_a_timing(timed):
    other = dataclasses.replace(task_of(2), params={"w0": np.ones(6, "f4"), "w1": np.ones(6, "f4")})
    run()
    for config, kwargs in (
        (dataclasses.replace(METHOD, rule=optax.adagrad(0.01)), {}),
        (METHOD, {"seed": 7}),
        (METHOD, {"task": other}),
    ):
        found = run(config, **kwargs)
        engine = run(config, **(kwargs | {"executor": "engine"}))
        assert [*map(plain, found.trace.rows)] == [*map(plain, engine.trace.rows)]
        assert found.summary["params_sha256"] == engine.summary["params_sha256"]
        assert found.staleness_histogram == engine.staleness_histogram
    assert len(timed) == 1


@pytest.mark.parametrize(
    ("config", "kwargs"),
    [
        (dataclasses.replace(METHOD, replicas=4), {}),
        (dataclasses.replace(METHOD, rule=optax.adam(0.05)), {}),  # its state has another size
        (dataclasses.replace(METHOD, local_rule=optax.sgd(0.05)), {}),
        (METHOD, {"cluster": dataclasses.replace(CLUSTER, seed=4)}),
        (METHOD, {"cluster": dataclasses.replace(CLUSTER, seed=3, latency_s=1e-3)}),
        (METHOD, {"task": task_of(3)}),
        (METHOD, {"task": dataclasses.replace(task_of(2), batch_size=5)}),
        (METHOD, {"evaluate_every_s": 0.5}),
        (METHOD, {"until_s": 0.4}),
        (METHOD, {"trace": dbjax.Trace(max_spans=100)}),
        (METHOD, {"checkpoint_every": dbjax.Every(seconds=0.2)}),
    ],
)
def test_other_runs_do_not(config, kwargs, timed):
    run()
    run(config, **kwargs)
    assert len(timed) == 2


def test_a_cluster_that_is_changed_between_runs_is_another_one(timed):
    machines = {"replica/0": dbjax.Machine(), "replica/*": dbjax.Machine(speed=0.5)}

    def end_s(executor, machines):
        cluster = dbjax.Cluster(machines=machines, seed=0)
        return run(cluster=cluster, executor=executor).summary["time_s"]

    first = end_s("compiled", machines)
    machines["replica/0"] = dbjax.Machine(speed=0.1)
    assert end_s("compiled", machines) == end_s("engine", machines) > first
    turned = dict(reversed(machines.items()))  # of two patterns that match, the first one counts
    assert end_s("compiled", turned) == end_s("engine", turned) < end_s("compiled", machines)


def test_rules_that_are_equal_are_told_apart_by_their_places(timed):
    rule = optax.sgd(0.01)
    same = optax.GradientTransformation(*rule)
    run(dataclasses.replace(METHOD, rule=rule, local_rule=same))
    config = dataclasses.replace(METHOD, rule=optax.sgd(0.01), local_rule=optax.sgd(0.03))
    found, engine = run(config), run(config, executor="engine")
    assert found.summary["params_sha256"] == engine.summary["params_sha256"]


def test_a_sweep_over_five_clusters_times_each_once(timed):
    for rate in (0.01, 0.02):
        for seed in range(5):
            config = dataclasses.replace(METHOD, rule=optax.adagrad(rate))
            run(config, cluster=dataclasses.replace(CLUSTER, seed=seed))
    assert len(timed) == 5


def test_an_interrupted_run_is_not_shared(timed, monkeypatch):
    def interrupted(self, *args):
        before(self, *args)
        if not came:
            came.append(signal.raise_signal(signal.SIGINT))

    came, before, kept = [], TimedRun.advance, Kept()
    config = dataclasses.replace(METHOD, steps=None)
    run(config, until_s=0.5, checkpoints=kept)
    with monkeypatch.context() as patched:
        patched.setattr(TimedRun, "advance", interrupted)
        ended = run(config, until_s=1.0, resume=kept.contents[-1], checkpoints=Kept())
    assert (ended.summary["interrupted"], ended.summary["time_s"]) == ("SIGINT", 0.5)
    assert run(config, until_s=1.0, checkpoints=Kept()).summary["time_s"] == 1.0


def test_a_method_of_ones_own_is_timed_each_time(timed):
    method = OtherRules(optax.sgd(5.0), replicas=2, shards=2, steps=20)
    for _ in range(2):
        run(method)
    assert len(timed) == 2


def test_a_method_that_draws_random_numbers_depends_on_the_seed(timed, monkeypatch):
    def program(runtime, *args):
        runtime.simulator.randomness = True
        return before(runtime, *args)

    before = downpour.program
    monkeypatch.setattr(downpour, "program", program)
    for seed, count in ((1, 1), (2, 2), (2, 2)):
        run(seed=seed)
        assert len(timed) == count


def test_a_run_that_does_not_end_by_itself_is_not_kept(timed):
    def listen(row):
        if row["node"] == "evaluator" and row["time_s"] > 0:
            trace.stop()

    trace = dbjax.Trace(listeners=[listen])
    first = run(evaluate_every_s=0.1, trace=trace)
    second = run(evaluate_every_s=0.1)
    assert first.summary["updates"] < second.summary["updates"]


def test_a_resumed_run_shares_the_timing_of_the_whole_one(timed):
    kept = Kept()
    config = dataclasses.replace(METHOD, steps=None)
    run(config, until_s=0.5, checkpoints=kept)
    whole = run(config, until_s=1.0)
    resumed = run(config, until_s=1.0, resume=kept.contents[-1])
    assert resumed.summary["params_sha256"] == whole.summary["params_sha256"]
    assert len(timed) == 2
