"""A shard that decides when it answers a fetch."""

from __future__ import annotations

import dataclasses
from typing import Any

from dbjax.parameter_server.shard import Push, Shard, ShardState
from dbjax.runtime.interface import Future


@dataclasses.dataclass(frozen=True)
class GatedState:
    """The complete state of a gated shard, for its backup.

    Attributes:
      shard: the state that every shard has.
      held: the replicas whose fetches wait, in order of arrival.
      clocks: see `GatedShard`.
    """

    shard: ShardState
    held: tuple[str, ...]
    clocks: dict[str, int]


class GatedShard(Shard):
    """A shard that answers a fetch only when `may_fetch` allows it, and asks again after each push.

    Extend it and define `may_fetch`. Fetches that wait are part of the state that a backup is
    given.

    Attributes:
      clocks: for each replica, how many pushes it has made. A shard that was restored from a
        checkpoint has lost pushes, so it knows a replica's clock only from the next push on.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.clocks: dict[str, int] = {}
        self._held: list[tuple[str, Future[Any]]] = []

    def may_fetch(self, replica: str) -> bool:
        """Returns whether a fetch of this replica is answered now."""
        raise NotImplementedError

    def fetch(self, replica: str) -> Any:
        """Serves a fetch once `may_fetch` allows it: the reply is deferred."""
        if not self.staleness.restored:
            self.clocks.setdefault(replica, self.pushed(replica))
        reply: Future[Any] = Future(f"the turn of {replica}")
        self._held.append((replica, reply))
        self._answer()
        return reply

    def push(self, push: Push) -> int:
        """Applies a push, and serves the fetches that are allowed after it."""
        version = super().push(push)
        self.clocks[push.replica] = push.sequence + 1
        self._answer()
        return version

    def state(self) -> Any:
        """Returns the complete state, with the fetches that wait."""
        held = tuple(replica for replica, _ in self._held)
        return GatedState(super().state(), held, dict(self.clocks))

    def checkpoint(self) -> ShardState:
        """Returns what a checkpoint keeps: replicas repeat the fetches that wait."""
        return super().state()

    def restore(self, state: Any, *, checkpoint: bool = False) -> None:
        """Replaces the complete state; see `Shard.restore`."""
        gated = state if isinstance(state, GatedState) else GatedState(state, (), {})
        super().restore(gated.shard, checkpoint=checkpoint)
        self.clocks = {} if checkpoint else dict(gated.clocks)
        held = () if checkpoint else gated.held  # nobody waits for these replies any more
        self._held = [(replica, Future(f"the turn of {replica}")) for replica in held]

    def _answer(self) -> None:
        due = [held for held in self._held if self.may_fetch(held[0])]
        self._held = [held for held in self._held if held not in due]
        for replica, reply in due:
            reply.set_result(super().fetch(replica))
