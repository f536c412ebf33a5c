"""The coordinator's view: vectors that it commands, and evaluations that replicas do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

from dbjax.algorithms.sandblaster.batches import Batches
from dbjax.algorithms.sandblaster.scheduler import CoordinatorCounts, Scheduler
from dbjax.algorithms.sandblaster.work_queue import WorkQueue
from dbjax.optim.space import Command, Losses
from dbjax.parameter_server.vector_client import VectorClient
from dbjax.runtime.interface import Node


@final
class ShardedSpace:
    """A `Space` (see `dbjax.optim.space`) on shards and replicas.

    Args:
      size_of: portions -> examples in them.
      send_every: portions whose gradients a replica sends together.
    """

    def __init__(
        self,
        node: Node,
        vectors: VectorClient,
        scheduler: Scheduler,
        counts: CoordinatorCounts,
        make_batches: Batches,
        size_of: Callable[[Iterable[int]], int],
        send_every: int,
    ) -> None:
        self._counts = counts
        self._node, self._vectors, self._scheduler = node, vectors, scheduler
        self._batches, self._size_of, self._send_every = make_batches, size_of, send_every
        self._evaluation = node.incarnation << 32  # no number is ever used again
        self._planned: dict[int, list[int]] = {}

    def state_dict(self) -> Any:
        """What it knows between two evaluations; not changed afterwards."""
        return self._evaluation, dict(self._planned), self._scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Knows what another one knew."""
        self._evaluation, self._planned, scheduler = state
        self._scheduler.load_state_dict(scheduler)

    @property
    def before(self) -> str:
        return "gradient" if self._batches.whole else "before"

    @property
    def after(self) -> str:
        return "gradient" if self._batches.whole else "after"

    async def perform(self, *commands: Command) -> list[float]:
        begin_s = self._node.now()
        replies = await self._vectors.perform(*commands)
        self._counts.commanding_s += self._node.now() - begin_s
        return replies

    async def evaluate(self, sample: int, *commands: Command) -> Losses:
        begin_s = self._node.now()
        self._evaluation += 1
        await self._vectors.begin(self._evaluation, commands)  # PS.accruedgradients <- 0
        parts = self._batches.parts(sample)
        sizes = {part: self._size_of(portions) for part, portions in parts.items()}
        total = sum(sizes.values())
        batch = WorkQueue(parts, self._plan(parts), self._send_every)
        await self._scheduler.process(batch, self._evaluation, total)
        if self._batches.whole:
            self._planned = batch.doers()  # data affinity
        scales = {part: total / size for part, size in sizes.items()}
        losses = await self._vectors.close(self._evaluation, scales)
        means = {part: scales[part] * loss for part, loss in zip(parts, losses, strict=True)}
        self._counts.evaluations += 1
        self._counts.examples += total
        self._counts.evaluating_s += self._node.now() - begin_s
        loss = sum(losses)
        return Losses(loss, means.get("before", loss), means.get("after", loss))

    def _plan(self, parts: dict[str, tuple[int, ...]]) -> dict[int, list[int]]:
        """What each replica did last time; at first an equal share of consecutive portions."""
        if self._planned:
            return self._planned
        portions = [portion for some in parts.values() for portion in some]
        count, workers = len(portions), self._scheduler.size
        return {
            r: portions[r * count // workers : (r + 1) * count // workers] for r in range(workers)
        }
