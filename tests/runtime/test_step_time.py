"""Steps of several machines: by hand, the slowest of each phase, and a card on each machine."""

import dataclasses
import math

import numpy as np
import pytest

from dbjax.runtime import Cluster, Machine, VirtualRuntime, all_of, step_time
from dbjax.runtime.step_time import Phase, PhasedStep, slowest_factor

MACHINE = Machine(
    flops_per_s=100.0, memory_bandwidth_bytes_per_s=1_000.0, bandwidth_bytes_per_s=50.0
)
CLUSTER = Cluster(machine=MACHINE, latency_s=0.5, message_s=0.1)


def test_bounds_by_hand():
    step = PhasedStep(
        4,
        (
            Phase(flops=200.0, bytes=100.0, rounds=1, messages=3, sent_bytes=100.0),
            Phase(flops=100.0, bytes=3_000.0, repeats=2),  # limited by memory
        ),
    )
    compute_s, exchange_s = 2.0 + 2 * 3.0, 0.5 + 3 * 0.1 + 2.0
    found = step.bounds(CLUSTER)
    assert found.lower_s == pytest.approx(max(compute_s, exchange_s))
    assert found.upper_s == pytest.approx(compute_s + exchange_s)


def test_the_lower_bound_may_be_the_communication():
    step = PhasedStep(2, (Phase(flops=1.0, rounds=10),))
    assert step.bounds(CLUSTER).lower_s == 5.0


@pytest.mark.parametrize("law", ["lognormal", "exponential"])
def test_the_slowest_machine_counts(law):
    machine = Machine(flops_per_s=1.0, law=law, sigma=0.3 if law == "lognormal" else 0.0)
    cluster = Cluster(machine=machine)
    step = PhasedStep(9, (Phase(1.0), Phase(1.0, repeats=3)))
    draws = np.random.default_rng(0)
    mean_s = np.mean([step.draw_s(machine, cluster, draws) for _ in range(4_000)])
    assert step.bounds(cluster).upper_s == pytest.approx(4 * slowest_factor(machine, 9))
    assert mean_s == pytest.approx(4 * slowest_factor(machine, 9), rel=0.02)
    assert slowest_factor(machine, 9) > 1.2 > slowest_factor(machine, 1) == 1.0


@pytest.mark.parametrize("sigma", [0.5, 1.5, 2.0])
def test_the_slower_of_two_in_closed_form(sigma):
    machine = Machine(law="lognormal", sigma=sigma)
    closed = 1 + math.erf(sigma / 2)  # 2 Phi(sigma / sqrt 2)
    assert slowest_factor(machine, 2) == pytest.approx(closed, rel=1e-5)


@pytest.mark.parametrize("law", ["constant", "lognormal", "exponential"])
@pytest.mark.parametrize("factor", [10.0, 0.5])
def test_stragglers_count(law, factor):
    machine = Machine(
        flops_per_s=1.0, law=law, sigma=0.3 if law == "lognormal" else 0.0,
        straggle_probability=0.1, straggle_factor=factor,
    )  # fmt: skip
    cluster = Cluster(machine=machine)
    for machines in (1, 9):
        step = PhasedStep(machines, (Phase(1.0),))
        draws = np.random.default_rng(0)
        mean_s = np.mean([step.draw_s(machine, cluster, draws) for _ in range(20_000)])
        assert step.bounds(cluster).upper_s == pytest.approx(mean_s, rel=0.03)
    assert step.bounds(cluster).lower_s == pytest.approx(1 + 0.1 * (factor - 1))


def test_without_variation_a_drawn_step_is_the_upper_bound():
    step = PhasedStep(8, (Phase(200.0, rounds=2), Phase(50.0, messages=7)))
    drawn_s = step.draw_s(MACHINE, CLUSTER, np.random.default_rng(0))
    assert drawn_s == pytest.approx(step.bounds(CLUSTER).upper_s)


def test_the_virtual_runtime_takes_a_phased_step_as_long_as_it_says():
    step = PhasedStep(2, (Phase(flops=300.0, rounds=1),))
    runtime = VirtualRuntime(dataclasses.replace(CLUSTER, compute_s=lambda fn, args: step))

    async def main(node):
        await node.compute(lambda: None)
        return node.now()

    end = runtime.spawn("replica/0", main)
    runtime.run()
    assert end.result() == 3.5


class Sink:
    def __init__(self, node):
        self.node, self.arrivals = node, []

    def take(self, data):
        self.arrivals.append(self.node.now())


@pytest.mark.parametrize(("machines", "end_s"), [(1, 4.0), (2, 2.0), (4, 1.0), (8, 1.0)])
def test_a_replica_has_a_card_on_each_of_its_machines(machines, end_s):
    """Four shards get 50 bytes each from a replica whose cards carry 50 a second."""
    card = Machine(bandwidth_bytes_per_s=50.0)
    runtime = VirtualRuntime(Cluster(machine=card, replica_machines=machines))
    shards = [runtime.serve(f"shard/{i}", Sink) for i in range(4)]

    async def main(node):
        await all_of([s.call(Sink.take, np.zeros(50, np.uint8)) for s in shards], list)

    runtime.spawn("replica/0", main)
    assert runtime.run() == end_s
    assert max(s.service.arrivals[-1] for s in shards) == end_s


def test_other_nodes_have_one_card():
    runtime = VirtualRuntime(
        Cluster(machine=Machine(bandwidth_bytes_per_s=50.0), replica_machines=4)
    )
    sinks = [runtime.serve(f"shard/{i}", Sink) for i in range(4)]

    async def main(node):
        await all_of([s.call(Sink.take, np.zeros(50, np.uint8)) for s in sinks], list)

    runtime.spawn("coordinator", main)
    assert runtime.run() == 4.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Cluster(compute_s="costs"), "set flops_per_s of 'machine'"),
        (
            lambda: Cluster(compute_s="costs", machine=MACHINE, machines={"shard/*": Machine()}),
            "of 'shard/\\*'",
        ),
        (lambda: Cluster(replica_machines=0), "replica_machines=0 must be at least 1"),
        (lambda: Cluster(compute_s="cost"), "at least 0, or 'costs'"),
        (lambda: Cluster(message_s=-1.0), "message_s=-1.0"),
        (lambda: Machine(flops_per_s=0.0), "flops_per_s=0.0 must be above 0"),
        (lambda: Machine(memory_bandwidth_bytes_per_s=math.nan), "memory_bandwidth"),
        (lambda: VirtualRuntime(Cluster(compute_s="costs", machine=MACHINE)), "CompiledSteps"),
    ],
)
def test_bad_clusters_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_the_slowest_is_looked_for_once_whatever_the_machines_speed():
    """A fit asks for it at thousands of speeds, and each takes milliseconds."""
    before = step_time._slowest_factor.cache_info().misses
    machines = [
        Machine(law="lognormal", sigma=0.123, flops_per_s=speed, bandwidth_bytes_per_s=speed)
        for speed in (1.0, 10.0, 100.0)
    ]
    assert len({slowest_factor(machine, 5) for machine in machines}) == 1
    assert step_time._slowest_factor.cache_info().misses == before + 1
