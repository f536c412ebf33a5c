"""One process of a replica that spans several: it acts for the replica on its own shards."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast, final

import jax

from dbjax.parameter_server.client import ParameterServer
from dbjax.runtime.interface import Node


async def replica_process(
    node: Node,
    replica: str,
    client: Callable[..., Coroutine[Any, Any, None]],
    server: ParameterServer[Any],
    *args: Any,
) -> None:
    """Runs a client in one of the processes of its replica; all of them run the same.

    Each fetches from and pushes to the shards that hold its own part of the parameters. The
    processes meet in every gradient, so they must compute equally many of them. When each fetches
    and pushes may differ.

    Paper: section 4.1, on reducing communication between shards and machines.

    Args:
      node: the node of this process.
      replica: the name of the replica.
      client: the coroutine function `client(node, server, *args)`.
      server: the parameter server.
      *args: further arguments of the client.
    """
    process = jax.process_index()
    acting = cast(Node, _ReplicaNode(node, replica, records=process == 0))
    await client(acting, server.of_process(process), *args)


@final
class _ReplicaNode:
    """A node under the name of its replica, so that shards count a push of the replica as one.

    Args:
      node: the node of one of the replica's processes.
      replica: the name of the replica.
      records: whether metrics are recorded; one process records them for the whole replica.
    """

    def __init__(self, node: Node, replica: str, *, records: bool) -> None:
        self._node, self.name, self._records = node, replica, records

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def record(self, **values: Any) -> None:
        if self._records:
            self._node.record(**values)
