"""Stale synchronous parallel: no replica is more than `bound` pushes ahead of another.

Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server".
"""

import dataclasses
import functools
from typing import Any

from dbjax.algorithms import downpour
from dbjax.program import Future, Program, Push, Restore, Runtime, Shard, Task, bounded


@dataclasses.dataclass(frozen=True)
class Config(downpour.Config):
    """Downpour SGD, with `bound`: the number of pushes a replica may be ahead of the slowest."""

    bound: int = bounded(2, at_least=0)


class BoundedShard(Shard):
    """Delays a fetch until its replica is at most `bound` pushes ahead of all replicas so far."""

    def __init__(self, *args: Any, bound: int) -> None:
        super().__init__(*args)
        self._bound, self._known = bound, set[str]()
        self._held: list[tuple[str, Future[Any]]] = []  # the fetches that wait

    def fetch(self, replica: str) -> Any:
        reply: Future[Any] = Future(f"replicas behind {replica}")
        self._held.append((replica, reply))
        self._answer(replica)
        return reply

    def push(self, push: Push) -> int:
        version = super().push(push)
        self._answer(push.replica)
        return version

    def _answer(self, heard: str) -> None:
        self._known.add(heard)
        most = self._bound + min(map(self.pushed, self._known))
        due = [held for held in self._held if self.pushed(held[0]) <= most]
        self._held = [held for held in self._held if held not in due]
        for replica, reply in due:
            reply.set_result(super().fetch(replica))


def program(
    runtime: Runtime, task: Task, config: Config, restore: Restore | None = None
) -> Program:
    """Places Downpour SGD with shards of class `BoundedShard`."""
    shard = functools.partial(BoundedShard, bound=config.bound)
    return downpour.program(runtime, task, config, restore, shard=shard)
