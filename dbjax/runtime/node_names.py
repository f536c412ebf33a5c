"""Names of nodes, and the kinds of nodes that they tell: replica, shard, backup, coordinator."""

from __future__ import annotations

import enum
import re

_BACKUP = "/backup"


class NodeKind(enum.Enum):
    """What runs on a node."""

    REPLICA = "replica"  # a model replica, "replica/3"
    SHARD = "shard"  # the primary copy of a parameter server's shard, "shard/0"
    BACKUP = "backup"  # the second copy of a shard, "shard/0/backup"
    COORDINATOR = "coordinator"  # Sandblaster's coordinator
    OTHER = "other"  # observers, and whatever a program of one's own places


def kind_of(node: str) -> NodeKind:
    """The kind of the node of that name."""
    if node.endswith(_BACKUP):
        return NodeKind.BACKUP
    group = node.partition("/")[0]
    known = {kind.value: kind for kind in NodeKind}
    return known.get(group, NodeKind.OTHER)


def replica_name(replica: int) -> str:
    """The node of a model replica, counted from 0."""
    return f"replica/{replica}"


def backup_name(service: str) -> str:
    """The node of a service's second copy."""
    return service + _BACKUP


def service_name(node: str) -> str:
    """The service that a node runs, whichever copy of it the node holds."""
    return node.removesuffix(_BACKUP)


def kind_label(node: str) -> str:
    """The name of the node without its number: "shard/0/backup" is a "shard/backup"."""
    return re.sub(r"/\d+", "", node)


def node_order(node: str) -> tuple[str, int]:
    """A key for sorting names of nodes: "replica/2" comes before "replica/10"."""
    number = re.search(r"/(\d+)$", node)
    return (node.split("/")[0], int(number.group(1)) if number else -1)
