"""The coordinator's view of shards and replicas: vectors to command, and a loss to evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import final

from dbjax.algorithms.sandblaster.batches import Batches
from dbjax.algorithms.sandblaster.scheduler import CoordinatorCounts, Scheduler
from dbjax.algorithms.sandblaster.work_queue import WorkQueue
from dbjax.errors import ServiceError, StateLost
from dbjax.optim import Method, State, Stops
from dbjax.optim.space import Command, Losses
from dbjax.parameter_server.vector_client import Traffic, VectorClient
from dbjax.runtime.interface import Node
from dbjax.runtime.trace import Row


@final
class ShardedSpace:
    """Implements `dbjax.optim.space.Space` on shards and replicas.

    It also makes iterations transactional. The shards store the coordinator's own state with their
    vectors. When the coordinator is restarted or a shard is restored, the method therefore
    continues after the last iteration that all shards know.

    Args:
      node: the node that the coordinator runs on.
      vectors: the client of the shards.
      scheduler: has the replicas compute portions.
      counts: the counters of the run, which this object updates.
      batches: the portions that make up each batch.
      size_of: portions -> the number of their examples.
      send_every: the number of portions whose gradients a replica sends together.
    """

    def __init__(
        self,
        node: Node,
        vectors: VectorClient,
        scheduler: Scheduler,
        counts: CoordinatorCounts,
        batches: Batches,
        size_of: Callable[[Iterable[int]], int],
        send_every: int,
    ) -> None:
        self._counts = counts
        self._node, self._vectors, self._scheduler = node, vectors, scheduler
        self._batches, self._size_of, self._send_every = batches, size_of, send_every
        self._evaluation = node.incarnation << 32  # no incarnation reuses a number
        self._planned: dict[int, list[int]] = {}

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

    async def join(self, stops: Stops) -> State | None:
        """Restores the coordinator's state, if this is a restart or a resumed run.

        Args:
          stops: the stopping criteria of this run, which may allow more iterations than those of
            the run that it resumes.

        Returns:
          The state in which the method continues; None: it begins.
        """
        progress = self._node.saved_progress()
        if progress is not None:  # the run is resumed exactly where it stood
            known, self._vectors.command, (self._evaluation, self._planned, scheduler) = progress
            self._scheduler.load_state_dict(scheduler)
        else:
            known = await self._vectors.resume()
        if known is None:
            return None
        state: State = known[0]
        for name, value in dataclasses.asdict(known[1]).items():
            setattr(self._counts, name, value)
        self._vectors.traffic = dataclasses.replace(known[2])
        if state is not None and progress is None:
            state = stops.check(dataclasses.replace(state, stop=""))
            self._record(state)
        return state

    async def transaction(self, method: Method, stops: Stops, state: State | None) -> State | None:
        """Performs one iteration of a method, completely or not at all.

        Args:
          method: the batch method.
          stops: the stopping criteria.
          state: the state of the method; None: it begins.

        Returns:
          The state after the iteration. If a shard was restored meanwhile, it is the state after
          the last iteration that all shards know; None: the method begins again.
        """
        self._save_progress(state)
        iteration = method.start(self) if state is None else method.iterate(self, state)
        try:
            after = stops.check(await iteration)
            known = (method.memo(after), *self._copies())
            await self._vectors.finish(after.iteration, self._counts.examples, known)
        except (StateLost, ServiceError) as error:
            if not isinstance(error.__cause__ or error, StateLost):
                raise
            last_known = await self._vectors.resume()
            self._counts.rewinds += 1
            return last_known[0] if last_known else None
        self._record(after)
        return after

    def _save_progress(self, state: State | None) -> None:
        known = (state, *self._copies())
        between_evaluations = (
            self._evaluation,
            dict(self._planned),
            self._scheduler.state_dict(),
        )
        self._node.save_progress((known, self._vectors.command, between_evaluations))

    def _copies(self) -> tuple[CoordinatorCounts, Traffic]:
        return dataclasses.replace(self._counts), dataclasses.replace(self._vectors.traffic)

    def _record(self, state: State) -> None:
        self._node.record(**iteration_row(state, self._counts, self._vectors.traffic))

    def _plan(self, parts: dict[str, tuple[int, ...]]) -> dict[int, list[int]]:
        """Returns the portions planned for each replica.

        These are the portions that it computed last time (data affinity); at first each replica
        gets an equal share of consecutive portions.
        """
        if self._planned:
            return self._planned
        portions = [portion for some in parts.values() for portion in some]
        count, workers = len(portions), self._scheduler.size
        return {
            r: portions[r * count // workers : (r + 1) * count // workers] for r in range(workers)
        }


def iteration_row(state: State, counts: CoordinatorCounts, traffic: Traffic) -> Row:
    """Returns the row that the coordinator records after each iteration.

    Args:
      state: the state of the method after the iteration.
      counts: the counters of the run so far.
      traffic: the messages exchanged with the shards so far.
    """
    return {
        "step": state.iteration,
        "loss": state.loss,
        "gradient_norm": state.gradient_norm,
        "step_length": state.step,
        "stop": state.stop,
        **dataclasses.asdict(counts),
        **dataclasses.asdict(traffic),
    }
