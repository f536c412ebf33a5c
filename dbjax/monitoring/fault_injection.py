"""Kills nodes while a run goes on, one after the other, and tells how they recovered."""

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
    """Kills a random replica or shard every `every_s`, but never both copies of a shard.

    To be given to `dbjax.run(background=)`.

    Attributes:
      every_s: between two kills, in seconds on the run's clock.
      seed: of who is killed.
    """

    every_s: float
    seed: int = 0

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
                node.record(event="killed", victim=victim)
                runtime.kill(victim)


async def _may_die(node: Node, victim: str, nodes: Sequence[str]) -> bool:
    """Whether nothing is lost that was acknowledged: where there are two copies, both are whole."""
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
    """One death: whose, when, and how long until the node was back; infinite: never."""

    node: str
    at_s: float
    back_after_s: float


def kills(rows: Sequence[Row]) -> list[Kill]:
    """What the rows of a run say of deaths and returns."""
    found: list[Kill] = []
    for i, row in enumerate(rows):
        if row.get("event") == "died":
            back_s = (
                later["time_s"]
                for later in rows[i + 1 :]
                if later.get("event") == "returned" and later["node"] == row["node"]
            )
            found.append(Kill(row["node"], row["time_s"], next(back_s, math.inf) - row["time_s"]))
    return found
