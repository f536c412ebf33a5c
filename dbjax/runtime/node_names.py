"""Names of nodes, which tell the kind of a node: replica, shard, backup or coordinator."""

from __future__ import annotations

import enum
import re

_BACKUP = "/backup"


class NodeKind(enum.Enum):
    """The kinds of nodes, by what runs on them."""

    REPLICA = "replica"  # a model replica, "replica/3", or one of its processes, "replica/3/1"
    SHARD = "shard"  # the primary copy of a parameter server's shard, "shard/0"
    BACKUP = "backup"  # the second copy of a shard, "shard/0/backup"
    COORDINATOR = "coordinator"  # Sandblaster's coordinator
    OTHER = "other"  # observers, and the nodes of users' own programs


def kind_of(node: str) -> NodeKind:
    """Returns the kind of the node of that name."""
    if node.endswith(_BACKUP):
        return NodeKind.BACKUP
    group = node.partition("/")[0]
    known = {kind.value: kind for kind in NodeKind}
    return known.get(group, NodeKind.OTHER)


def replica_name(replica: int) -> str:
    """Returns the name of a model replica's node; replicas are counted from 0."""
    return f"replica/{replica}"


def member_name(replica: int, process: int) -> str:
    """Returns the name of the node of one process of a replica, "replica/3" for the first of them.

    Args:
      replica: the index of the replica.
      process: the index of the process, if the replica spans several; 0 otherwise.
    """
    return f"{replica_name(replica)}/{process}" if process else replica_name(replica)


def replica_of(member: str) -> str:
    """Returns the name of the replica to which a process belongs: "replica/3" for "replica/3/1"."""
    return re.sub(r"^(replica/\d+)/\d+$", r"\1", member)


def backup_name(service: str) -> str:
    """Returns the name of the node that runs the backup of a service."""
    return service + _BACKUP


def service_name(node: str) -> str:
    """Returns the name of the service that a node runs, be it the primary or the backup."""
    return node.removesuffix(_BACKUP)


def kind_label(node: str) -> str:
    """Returns the name of a node without its number: "shard/backup" for "shard/0/backup"."""
    return re.sub(r"/\d+", "", node)


def node_order(node: str) -> tuple[str, tuple[int, ...], str]:
    """Returns a key for sorting names of nodes, by which "replica/2" precedes "replica/10"."""
    return (node.split("/")[0], tuple(map(int, re.findall(r"/(\d+)", node))), node)
