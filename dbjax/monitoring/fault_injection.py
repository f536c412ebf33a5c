"""Makes nodes fail one after the other during a run, and reports how they recovered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dbjax.arguments import require_positive, require_seed
from dbjax.errors import NodeDied, ServiceError
from dbjax.parameter_server.replication import ReplicatedService
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.node_names import NodeKind, backup_name, kind_of, service_name
from dbjax.runtime.trace import Row

_MAY_DIE = (NodeKind.REPLICA, NodeKind.SHARD, NodeKind.BACKUP)


@dataclasses.dataclass(frozen=True)
class Chaos:
    """Makes a random replica or shard fail every `every_s`, but never both copies of a shard.

    Pass an instance to `dbjax.run` as `background`.

    Attributes:
      every_s: the time between two failures, in seconds on the run's clock.
      seed: the seed of the choice of nodes.
      hangs: whether every second failure, on average, is a process that stands still instead of one
        that is killed; only on Ray.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    every_s: float
    seed: int = 0
    hangs: bool = False

    def __post_init__(self) -> None:
        require_positive("Chaos.every_s", self.every_s)
        require_seed("Chaos.seed", self.seed)

    async def __call__(self, node: Node, runtime: Runtime) -> None:
        random = np.random.default_rng([self.seed, 17])
        while True:
            await node.sleep(self.every_s)
            nodes = [n for n in runtime.nodes() if kind_of(n) in _MAY_DIE]
            victim = nodes[random.integers(len(nodes))]
            if await _may_die(node, victim, nodes):
                hang = self.hangs and bool(random.integers(2))
                if runtime.kill(victim, hang=hang):
                    node.record(event="hung" if hang else "killed", victim=victim)


async def _may_die(node: Node, victim: str, nodes: Sequence[str]) -> bool:
    """Returns whether a node can fail without the loss of an acknowledged push.

    That is so if both copies of its shard are complete. It does not matter for replicas, nor for
    shards without backups, where a loss cannot be avoided.
    """
    name = service_name(victim)
    copies = (name, backup_name(name))
    if copies[1] not in nodes:
        return True
    for copy in copies:
        asking = node.service(copy).call(ReplicatedService.whole)
        try:
            if not await asking:
                return False
        except (NodeDied, ServiceError):
            return False
    return True


@dataclasses.dataclass(frozen=True)
class Kill:
    """One failure of a node.

    Attributes:
      node: the name of the node.
      at_s: when it failed, in seconds on the run's clock. If `Chaos` made it fail, that is when it
        did; otherwise it is when the runtime noticed.
      back_after_s: how many seconds later it was back; infinite if it never was.
      hung: whether it stood still.
    """

    node: str
    at_s: float
    back_after_s: float
    hung: bool = False


def kills(rows: Sequence[Row]) -> list[Kill]:
    """Finds the failures that the rows of a run record, in order of time."""
    found: list[Kill] = []
    causes = [row for row in rows if row.get("event") in ("killed", "hung")]
    for i, row in enumerate(rows):
        if row.get("event") != "died":
            continue
        name, noticed_s = row["node"], row["time_s"]
        earlier = [c for c in causes if c["victim"] == name and c["time_s"] <= noticed_s]
        causes = [c for c in causes if c not in earlier]
        cause = earlier[0] if earlier else row
        back_s = (
            later["time_s"]
            for later in rows[i + 1 :]
            if later.get("event") == "returned" and later["node"] == name
        )
        after_s = next(back_s, math.inf) - cause["time_s"]
        found.append(Kill(name, cause["time_s"], after_s, cause["event"] == "hung"))
    return found
