"""The turns of a compiled run: which push is computed in each, and which update every shard applies.

In a turn, the gradients of one push are computed, and then every shard applies at most one push.
Shards may apply the same pushes in different orders. Staleness leaves slack, so there are nearly
always as many turns as pushes; where there are not, shards or replicas are idle for a turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import final

import numpy as np

from dbjax.schedules.schedule import Ints, Schedule

_ROUNDS = 100
_NEVER = 2**31


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Turns:
    """The order of the arithmetic of a schedule, in T turns.

    Attributes:
      computes: the number of the push whose gradients are computed in a turn; -1: none; int32 [T].
      computed: the turn in which a push is computed, int32 [P].
      applies: the number of the push that a shard applies in a turn; -1: none; int32 [T, S].
      reached: for each shard, the number of turns until it has that version, int64 [versions]; its
        first entry is 0.
      ring: for each shard, how many of its latest versions must be kept, so that every version is
        there when it is read.
      pending: how many pushes must be kept between being computed and being applied by the last
        shard; 0: every push is applied by all shards in the turn in which it is computed.
    """

    computes: Ints
    computed: Ints
    applies: Ints
    reached: tuple[Ints, ...]
    ring: tuple[int, ...]
    pending: int

    def __len__(self) -> int:
        return len(self.computes)

    def versions(self) -> Ints:
        """Returns the version of each shard before every turn and after the last, [T + 1, S]."""
        steps = np.cumsum(self.applies >= 0, axis=0)
        return np.concatenate([np.zeros_like(steps[:1]), steps])


def turns_of(schedule: Schedule, looks: Sequence[Sequence[int]] = ()) -> Turns:
    """Orders the arithmetic of a schedule.

    Args:
      schedule: the schedule.
      looks: versions of all shards that somebody wants to see together, such as an evaluation.

    Returns:
      Turns in which every version exists before it is read.
    """
    updates = [_in_order(column) for column in schedule.position.T]
    placed = _placed(schedule, updates, _by_deadline(schedule), _ROUNDS)
    if placed is None:  # two pushes wait for each other in this order; in that of time, none do
        in_time = np.arange(schedule.pushes)
        placed = _placed(schedule, updates, in_time, 10 * schedule.pushes + 10)
        assert placed is not None
    computed, applied = placed
    count = 1 + int(max(turns.max(initial=-1) for turns in (computed, *applied)))
    computes = np.full(count, -1, np.int32)
    computes[computed] = np.arange(schedule.pushes)
    applies = np.full((count, schedule.shards), -1, np.int32)
    for shard, (turns, pushes) in enumerate(zip(applied, updates, strict=True)):
        applies[turns, shard] = pushes
    reached = tuple(np.concatenate([[0], turns + 1]) for turns in applied)
    made = Turns(computes, computed.astype(np.int32), applies, reached, (), 0)
    return dataclasses.replace(
        made, ring=_ring(schedule, made, looks), pending=_pending(schedule, made)
    )


def seen_after(turns: Turns, versions: Sequence[int]) -> int:
    """Returns after how many turns all shards have these versions, or later ones."""
    return int(max(reached[v] for reached, v in zip(turns.reached, versions, strict=True)))


def _in_order(position: Ints) -> Ints:
    """Returns the numbers of the pushes that a shard applies, in their order."""
    return np.argsort(position, kind="stable")[np.count_nonzero(position < 0) :]


def _by_deadline(schedule: Schedule) -> Ints:
    """Orders pushes by when they are needed, or can be computed if that is later.

    Each replica's come in order. Those that no shard applies come before the replica's next one.
    """
    position = np.where(schedule.position < 0, _NEVER, schedule.position).min(1)
    needs = np.maximum.reduceat(schedule.version.max(1), schedule.first[:-1])
    replica, life, step = (
        getattr(schedule, name)[schedule.first[:-1]] for name in ("replica", "life", "step")
    )
    mine = np.lexsort((step, life, replica))  # replica by replica
    key = np.maximum(position, needs)[mine] + replica[mine].astype(np.int64) * 2 * _NEVER
    key = np.minimum.accumulate(key[::-1])[::-1] % (2 * _NEVER)
    return mine[np.argsort(key, kind="stable")]


def _placed(
    schedule: Schedule, updates: Sequence[Ints], order: Ints, rounds: int
) -> tuple[Ints, list[Ints]] | None:
    """Finds the first turns in which pushes can be computed in this order, and applied.

    Returns:
      The turn in which each push is computed, and for every shard those of its updates; None if
      they are not found in so many rounds.
    """
    turn = np.empty(schedule.pushes, np.int64)
    turn[order] = np.arange(schedule.pushes)
    for _ in range(rounds):
        applied = [_ascending(turn[pushes]) for pushes in updates]
        ready = np.zeros(schedule.gradients, np.int64)
        for shard, turns in enumerate(applied):
            after = np.concatenate([[0], turns + 1])
            np.maximum(ready, after[schedule.version[:, shard]], out=ready)
        needs = np.maximum.reduceat(ready, schedule.first[:-1])
        due = _ascending(np.maximum(needs, turn)[order])
        if np.array_equal(due, turn[order]):
            return turn, applied
        turn[order] = due
    return None


def _ascending(turns: Ints) -> Ints:
    """Returns the earliest strictly ascending turns that are not before the given ones."""
    at = np.arange(len(turns))
    return np.maximum.accumulate(turns - at) + at if len(turns) else turns


def _ring(schedule: Schedule, turns: Turns, looks: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns how many versions of each shard must be kept; one more is being written."""
    versions, at = turns.versions(), turns.computed[schedule.push]
    oldest = (versions[at] - schedule.version).max(0, initial=0)
    if len(looks):
        seen = [versions[seen_after(turns, look)] - np.asarray(look) for look in looks]
        oldest = np.maximum(oldest, np.max(seen, axis=0))
    return tuple(int(age) + 2 for age in oldest)


def _pending(schedule: Schedule, turns: Turns) -> int:
    """Returns how many pushes must be kept at once until the last shard has applied them."""
    last = turns.computed.astype(np.int64)
    for shard in range(schedule.shards):
        turn = np.flatnonzero(turns.applies[:, shard] >= 0)
        np.maximum.at(last, turns.applies[turn, shard], turn)
    longest = int((last - turns.computed).max(initial=0))
    return longest + 1 if longest else 0
