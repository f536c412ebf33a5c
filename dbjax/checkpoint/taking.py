"""Taking checkpoints of a run: every so often, and at its end."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

from dbjax.checkpoint.content import Content
from dbjax.checkpoint.files import Checkpoints
from dbjax.runtime.base import Node, Runtime
from dbjax.task import Program


@dataclasses.dataclass(frozen=True)
class Every:
    """How often; whichever comes first.

    Attributes:
      seconds: on the run's clock; None: not by time.
      updates: of the shard that is behind; None: not by their number.
    """

    seconds: float | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "updates"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"checkpoints every {name}={value}: must be above 0, or None")


@final
class Taking:
    """Checkpoints of one run.

    Args:
      about: see `checkpoint.about`.
      replicas: of the run.
      checkpoints: where they go; None: they stay in memory, for shards that die.
    """

    def __init__(
        self,
        program: Program,
        machines: Runtime,
        about: dict[str, str],
        replicas: int,
        incarnation: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._program, self._machines, self._about = program, machines, about
        self._replicas, self._incarnation, self._checkpoints = replicas, incarnation, checkpoints

    async def main(self, node: Node, every: Every) -> None:
        """Takes them while the run goes on; the cluster does not notice."""
        seconds = math.inf if every.seconds is None else every.seconds
        taken_s, updates = node.now(), await self._updates()
        while True:
            due_s = taken_s + seconds
            if every.updates is None:
                await node.sleep(max(0.0, due_s - node.now()))
            else:
                await self._wait(node, due_s, updates + every.updates)
            taken_s, updates = max(due_s, node.now()), await self._updates()
            states = await self._program.store.each(self._program.shard.checkpoint)
            self._keep(states, node.now())

    def last(self, time_s: float) -> None:
        """One more, now that the run is over, and all of them on disk."""
        if self._checkpoints is not None:
            states = self._program.store.each(self._program.shard.checkpoint).result()
            self._keep(states, time_s)
            self._checkpoints.wait()

    def _keep(self, states: list[Any], time_s: float) -> None:
        store = self._program.store
        names = [shard.name for shard in store.shards]
        self._machines.saved = dict(zip(names, states, strict=True))
        if self._checkpoints is not None:
            pieces, incarnation = store.partition.shards, self._incarnation
            self._checkpoints.save(
                Content(self._about, self._replicas, pieces, tuple(states), incarnation, time_s)
            )

    async def _updates(self) -> int:
        reports = await self._program.store.each(self._program.shard.report)
        return min(report.version for report in reports)

    async def _wait(self, node: Node, due_s: float, updates: int) -> None:
        """Until then, or until there are that many; looks the more often the nearer it is."""
        step_s, before = 1e-3, await self._updates()
        while before < updates and node.now() < due_s:
            await node.sleep(min(step_s, max(0.0, due_s - node.now())))
            now = await self._updates()
            share = (updates - now) / max(1, now - before) / 2
            step_s, before = step_s * min(2.0, max(0.1, share)), now
