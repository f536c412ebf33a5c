"""Deaths, returns, and machines by name, by hand."""

import math

import pytest

from dbjax.runtime import Cluster, Failure, Machine, VirtualRuntime
from dbjax.runtime.interface import node_generator
from dbjax.runtime.trace import Trace


def events(cluster, until_s, *kills):
    """Of one node that computes for a second at a time; `kills`: when it is killed, too."""
    trace = Trace()
    runtime = VirtualRuntime(cluster, trace=trace)

    async def main(node):
        while True:
            await node.compute(int)
            node.record(event="computed", life=node.incarnation)

    async def killer(node):
        for at_s in kills:
            await node.sleep(at_s - node.now())
            runtime.kill("w")

    runtime.spawn("w", main)
    runtime.observe("killer", killer)
    runtime.run(until_s)
    return [(row["event"], row["time_s"]) for row in trace.rows]


def test_a_death_begins_the_computation_anew():
    cluster = Cluster(failures=(Failure("w", 1.5, 1.75),))
    assert events(cluster, 4.0) == [
        ("computed", 1.0), ("died", 1.5), ("returned", 1.75), ("computed", 2.75),
        ("computed", 3.75),
    ]  # fmt: skip


def test_one_that_is_dead_does_not_die_again():
    cluster = Cluster(failures=(Failure("w", 1.5, 3.0), Failure("w", 2.0, 2.5)))
    assert events(cluster, 3.5) == [("computed", 1.0), ("died", 1.5), ("returned", 3.0)]


def test_a_death_that_was_drawn_for_an_earlier_life_does_not_come():
    """Killed by hand first: of each life one death is drawn, from its beginning.

    The draws are those of the node's own generator: a time to the next failure, then one to its
    repair, at the start and after each return; a kill draws a repair alone.
    """
    machine = Machine(mean_time_between_failures_s=4.0, mean_time_to_repair_s=0.5)
    draws = node_generator(0, "draws of w")
    first_s, _ = draws.exponential(4.0), draws.exponential(0.5)
    killed_s = first_s / 2
    back_s = killed_s + draws.exponential(0.5)
    second_s, repair_s = back_s + draws.exponential(4.0), draws.exponential(0.5)
    assert back_s < first_s < second_s  # so that the first would have come in the second life
    found = events(Cluster(compute_s=1e3, machine=machine), second_s + repair_s + 1e-6, killed_s)
    assert [kind for kind, _ in found] == ["died", "returned", "died", "returned"]
    assert [at_s for _, at_s in found] == pytest.approx(
        [killed_s, back_s, second_s, second_s + repair_s]
    )


def test_one_that_is_killed_and_never_repaired_stays_dead():
    assert events(Cluster(), 9.0, 2.5) == [("computed", 1.0), ("computed", 2.0), ("died", 2.5)]


def test_the_first_pattern_that_matches_is_a_nodes_machine():
    machines = {"replica/1": Machine(speed=1.0), "replica/*": Machine(speed=2.0),
                "*": Machine(speed=3.0)}  # fmt: skip
    cluster = Cluster(machines=machines)
    speeds = [cluster.machine_of(name).speed for name in ("replica/1", "replica/2", "shard/0")]
    assert speeds == [1.0, 2.0, 3.0]
    assert Cluster(machine=Machine(speed=9.0)).machine_of("any").speed == 9.0


def test_every_life_has_random_numbers_of_its_own():
    first, again, other, elsewhere, seeded = (
        node_generator(*arguments).integers(1 << 40)
        for arguments in ((0, "a", 0), (0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))
    )
    assert first == again
    assert len({first, other, elsewhere, seeded}) == 4


def test_whether_nodes_may_die():
    assert not Cluster().nodes_can_fail
    for cluster in (
        Cluster(failures=(Failure("w", 1.0),)),
        Cluster(machine=Machine(mean_time_to_repair_s=1.0)),
        Cluster(machines={"w": Machine(mean_time_between_failures_s=1.0)}),
    ):
        assert cluster.nodes_can_fail
    assert math.isinf(Machine().mean_time_between_failures_s)
