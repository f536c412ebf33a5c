"""Times that would never come, or are none, are refused."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.monitoring.fault_injection import Chaos
from dbjax.runtime.cluster import Failure, Link, Machine, Outage
from dbjax.runtime.virtual import VirtualRuntime

X = np.ones((8, 2), np.float32)
TASK = dbjax.Task({"w": jnp.zeros(2)}, lambda p, b: jnp.mean((b @ p["w"] - 1) ** 2), data=X,
                  batch_size=2)  # fmt: skip
RULE = optax.sgd(0.1)
TWO = downpour.Config(rule=RULE, replicas=2, shards=1)


@pytest.mark.parametrize(
    ("method", "cluster"),
    [
        (TWO, dbjax.Cluster(compute_s=0.0)),
        (TWO, dbjax.Cluster(compute_s=lambda fn, args: 0.0)),
        (TWO, dbjax.Cluster(machine=Machine(speed=math.inf))),
        (sgd.Config(RULE), dbjax.Cluster(compute_s=0.0, latency_s=1.0)),  # nothing travels
    ],
)
def test_a_run_in_which_nothing_takes_time_says_so(method, cluster, monkeypatch):
    monkeypatch.setattr("dbjax.runtime.virtual.simulator._EVENTS_AT_ONCE", 200)
    with pytest.raises(ValueError, match=r"time stands still at 0 s, and until_s=5 never comes"):
        dbjax.run(TASK, method, cluster=cluster, until_s=5.0)


def test_a_run_in_which_nothing_takes_time_may_end_by_its_steps(monkeypatch):
    monkeypatch.setattr("dbjax.runtime.virtual.simulator._EVENTS_AT_ONCE", 5)
    method = downpour.Config(rule=RULE, replicas=2, shards=1, steps=30)
    still = dbjax.Cluster(compute_s=0.0)
    for until_s in (None, 5.0):
        summary = dbjax.run(TASK, method, cluster=still, until_s=until_s).summary
        assert (summary["updates"], summary["time_s"]) == (60, 0.0)


def test_time_that_goes_on_slowly_is_no_standstill(monkeypatch):
    monkeypatch.setattr("dbjax.runtime.virtual.simulator._EVENTS_AT_ONCE", 20)
    slow = dbjax.Cluster(compute_s=1e-3)
    assert dbjax.run(TASK, TWO, cluster=slow, until_s=0.1).summary["updates"] > 100


def test_a_program_of_ones_own_that_only_talks_is_found_too(monkeypatch):
    monkeypatch.setattr("dbjax.runtime.virtual.simulator._EVENTS_AT_ONCE", 50)

    async def main(node):
        while True:
            await node.sleep(0.0)

    runtime = VirtualRuntime(dbjax.Cluster())
    runtime.spawn("main", main)
    with pytest.raises(ValueError, match="stands still"):
        runtime.run(1.0)


NONE = [math.nan, -1.0, "5", True]


@pytest.mark.parametrize("value", [*NONE, 0.0, math.inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda value: dbjax.run(TASK, TWO, until_s=value),
        lambda value: dbjax.run(TASK, TWO, until_s=1.0, evaluate_every_s=value),
        lambda value: dbjax.Every(seconds=value),
        Chaos,
        lambda value: dbjax.Cluster(size_scale=value),
        lambda value: Machine(straggle_probability=0.5, straggle_factor=value),
    ],
)
def test_what_must_be_above_0_and_finite(use, value):
    with pytest.raises(ValueError, match=r"\w=.* must be (above 0 and finite|float)"):
        use(value)


@pytest.mark.parametrize("value", [*NONE, math.inf])
@pytest.mark.parametrize(
    "use",
    [
        *(lambda value, name=name: dbjax.Cluster(**{name: value})
          for name in ("compute_s", "latency_s", "message_s", "service_s")),
        lambda value: Machine(law="lognormal", sigma=value),
        lambda value: Link("a", "b", latency_s=value),
    ],
)  # fmt: skip
def test_what_must_be_finite_and_at_least_0(use, value):
    with pytest.raises(ValueError, match=r"\w=.* must be (finite and at least 0|float)"):
        use(value)


@pytest.mark.parametrize("value", [*NONE, 0.0])
@pytest.mark.parametrize("name", [
    "speed", "flops_per_s", "memory_bandwidth_bytes_per_s", "bandwidth_bytes_per_s",
    "mean_time_between_failures_s", "mean_time_to_repair_s",
])  # fmt: skip
def test_what_of_a_machine_must_be_above_0(name, value):
    with pytest.raises(ValueError, match=rf"Machine\.{name}=.* must be (above 0|float)"):
        Machine(**{name: value})


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(
    "use",
    [
        lambda value: Failure("x", at_s=value),
        lambda value: Failure("x", at_s=0.0, back_s=value),
        lambda value: Outage("a", "b", at_s=value, back_s=9.0),
        lambda value: Outage("a", "b", at_s=0.0, back_s=value),
    ],
)
def test_when_something_happens_is_a_time(use, value):
    with pytest.raises(ValueError, match=r"needs 0 <= at_s=|_s=.* must be float"):
        use(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_warm_start_lasts_a_finite_time(value):
    with pytest.raises(ValueError, match=r"downpour\.warm_start_s=.* must be (finite|at least 0)"):
        downpour.Config(warm_start_s=value)


@pytest.mark.parametrize("value", [*NONE[:3], math.inf])
def test_what_a_function_of_durations_returns_is_checked(value):
    cluster = dbjax.Cluster(compute_s=lambda fn, args: value)
    with pytest.raises(Exception, match=r"what Cluster\.compute_s returned=.* must be finite"):
        dbjax.run(TASK, TWO, cluster=cluster, until_s=1.0)


@pytest.mark.parametrize("probability", [0.5, 0.0])
def test_stragglers_that_are_not_slower_are_refused(probability):
    factor = 1.0 if probability else 8.0
    with pytest.raises(ValueError, match="set both, or neither"):
        Machine(straggle_probability=probability, straggle_factor=factor)


def test_parts_of_a_cluster_are_of_their_kind():
    with pytest.raises(ValueError, match=r"Cluster\.machines=.* must be a dict of Machine"):
        dbjax.Cluster(machines={"replica/0": {"speed": 2}})


def test_a_machine_of_no_node_is_told(caplog):
    machines = {"replica/9": Machine(speed=0.5), "replica/*": Machine(), "replica/0": Machine()}
    cluster = dbjax.Cluster(machines=machines)
    dbjax.run(TASK, TWO, cluster=cluster, until_s=3.0)
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(";")[0] for text in told] == [
        "Cluster.machines: no node uses the machine of 'replica/9'",
        "Cluster.machines: no node uses the machine of 'replica/0'",
    ]
