"""What the names of nodes say."""

import pytest

from dbjax.runtime.node_names import (
    NodeKind,
    backup_name,
    kind_label,
    kind_of,
    node_order,
    replica_name,
    service_name,
)


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ("replica/3", NodeKind.REPLICA),
        ("shard/0", NodeKind.SHARD),
        ("shard/0/backup", NodeKind.BACKUP),
        ("coordinator", NodeKind.COORDINATOR),
        ("evaluator", NodeKind.OTHER),
        ("shards/0", NodeKind.OTHER),
    ],
)
def test_the_kind_of_a_node(node, kind):
    assert kind_of(node) is kind


def test_a_backup_runs_the_service_of_its_primary():
    backup = backup_name("shard/12")
    assert backup == "shard/12/backup"
    assert service_name(backup) == service_name("shard/12") == "shard/12"
    assert kind_of(service_name(backup)) is NodeKind.SHARD
    assert (kind_label(backup), kind_label("shard/12")) == ("shard/backup", "shard")


def test_nodes_are_sorted_by_number():
    names = [replica_name(r) for r in (10, 2, 0)]
    assert sorted(names, key=node_order) == ["replica/0", "replica/2", "replica/10"]
    assert sorted(names) != sorted(names, key=node_order)
