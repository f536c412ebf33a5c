"""What the rows of a run say of deaths, by hand."""

import math

import pytest

from dbjax.errors import NodeDied, ServiceError
from dbjax.monitoring.fault_injection import Kill, _may_die, kills
from dbjax.parameter_server.replication import ReplicatedService


def test_a_node_is_back_when_it_returns_itself():
    rows = [
        {"time_s": time_s, "node": node, "event": event}
        for time_s, node, event in (
            (1.0, "shard/0", "died"), (2.0, "replica/1", "died"), (2.5, "replica/1", "returned"),
            (4.0, "shard/0", "returned"), (5.0, "shard/0", "died"), (6.0, "replica/2", "died"),
            (6.5, "shard/0", "returned"),
        )
    ]  # fmt: skip
    rows.insert(2, {"time_s": 2.2, "node": "evaluator", "updates": 3})
    assert kills(rows) == [
        Kill("shard/0", 1.0, 3.0),
        Kill("replica/1", 2.0, 0.5),
        Kill("shard/0", 5.0, 1.5),
        Kill("replica/2", 6.0, math.inf),
    ]


class Asked:
    """A node that asks copies of a shard; `whole` is what each says, or raises."""

    def __init__(self, whole):
        self.whole, self.name = whole, ""

    def service(self, name):
        asked = Asked(self.whole)
        asked.name = name
        return asked

    async def call(self, method):
        assert method is ReplicatedService.whole
        said = self.whole[self.name]
        if isinstance(said, Exception):
            raise said
        return said


@pytest.mark.parametrize("victim", ["shard/0", "shard/0/backup"])
@pytest.mark.parametrize(
    ("first", "backup", "may_die"),
    [(True, True, True), (False, True, False), (True, False, False),
     (NodeDied("shard/0"), True, False), (True, ServiceError("shard/0/backup"), False)],
)  # fmt: skip
def test_a_copy_may_die_only_where_both_are_whole(victim, first, backup, may_die):
    nodes = ["replica/0", "shard/0", "shard/0/backup"]
    asking = _may_die(Asked({"shard/0": first, "shard/0/backup": backup}), victim, nodes)
    assert asyncless(asking) == may_die


@pytest.mark.parametrize("victim", ["replica/0", "shard/0"])
def test_who_has_no_copy_may_die(victim):
    assert asyncless(_may_die(Asked({}), victim, ["replica/0", "shard/0"]))


def asyncless(coroutine):
    """What a coroutine returns that never waits."""
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value
