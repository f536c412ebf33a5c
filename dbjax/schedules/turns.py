"""The turns of a compiled run: which push is computed in each, and which one each shard applies.

In a turn, the gradients of one push are computed, and then every shard applies at most one push.
Shards may apply the same pushes in different orders. Staleness leaves slack, so there are nearly
always as many turns as pushes; where there are not, shards or replicas are idle for a turn.

Turns are divided by borders, the moments at which somebody looks at the run: an evaluation, a
checkpoint, the end. At a border, every shard has exactly the version that it has at that moment.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

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
      computed: the turn in which a push is computed, int64 [P].
      applies: the number of the push that a shard applies in a turn; -1: none; int32 [T, S].
      ends: how many turns there are up to each border, and at the end of all, int64 [borders + 1].
        After the last border, those gradients are computed that no shard applies.
      ring: for each shard, how many of its latest versions must be kept, so that every version is
        there when it is read.
      pending: how many pushes must be kept between being computed and being applied by the last
        shard; 0: every push is applied by all shards in the turn in which it is computed.
    """

    computes: Ints
    computed: Any
    applies: Ints
    ends: Any
    ring: tuple[int, ...]
    pending: int

    def __len__(self) -> int:
        return len(self.computes)

    def applied(self, schedule: Schedule) -> Any:
        """Returns the turn in which each shard applies a push, or -1, int64 [P, S]."""
        found = np.full(schedule.position.shape, -1, np.int64)
        turn, shard = np.nonzero(self.applies >= 0)
        found[self.applies[turn, shard], shard] = turn
        return found

    def needed_until(self, schedule: Schedule) -> Any:
        """Returns the last turn in which a shard applies a push, or in which it is computed, [P].

        A push that some shards have applied at the end, and others have not, is needed for longer:
        the run may be resumed.
        """
        first, replica = schedule.first[:-1], schedule.replica[schedule.first[:-1]]
        lives = np.zeros(schedule.replicas, np.int64)
        np.maximum.at(lives, schedule.replica, schedule.life)
        some = (schedule.position >= 0).any(1) & (schedule.position < 0).any(1)
        unfinished = some & (schedule.life[first] == lives[replica])
        last = np.maximum(self.applied(schedule).max(1), self.computed)
        return np.where(unfinished, len(self), last)

    def versions(self) -> Any:
        """Returns the version of each shard before every turn and after the last, [T + 1, S]."""
        steps = np.cumsum(self.applies >= 0, axis=0)
        return np.concatenate([np.zeros_like(steps[:1]), steps])


def turns_of(schedule: Schedule, borders: Any = None) -> Turns:
    """Orders the arithmetic of a schedule.

    Args:
      schedule: the schedule.
      borders: the versions of all shards at each border, ascending, int [borders, S]; the last one
        is the end. None: there is only the end.

    Returns:
      Turns in which every version exists before it is read.

    Raises:
      ValueError: pushes wait for each other, which cannot happen in a run.
    """
    if borders is None:
        borders = (schedule.position >= 0).sum(0)[None]
    borders = np.asarray(borders)
    order = _by_deadline(schedule)
    segment = np.stack(  # of every update, and thus of the push that is computed for the first one
        [np.searchsorted(borders[:, s], schedule.position[:, s], "right")
         for s in range(schedule.shards)], 1)  # fmt: skip
    segment = np.where(schedule.position < 0, len(borders), segment)
    mine = _not_after_the_next(schedule, segment.min(1))[order]
    order = order[np.argsort(mine, kind="stable")]
    cuts = np.searchsorted(np.sort(mine), np.arange(len(borders) + 2))
    updates = [_in_order(column) for column in schedule.position.T]
    turn = np.full(schedule.pushes, -1, np.int64)
    applied = [np.empty(len(pushes), np.int64) for pushes in updates]
    begin, before, ends = 0, np.zeros(schedule.shards, np.int64), list[int]()
    for number, border in enumerate([*borders, borders[-1]]):
        pushes = order[cuts[number] : cuts[number + 1]]
        begin = _place(schedule, pushes, updates, before, border, begin, turn, applied)
        ends.append(begin)
        before = border
    computes = np.full(begin, -1, np.int32)
    computes[turn] = np.arange(schedule.pushes)
    applies = np.full((begin, schedule.shards), -1, np.int32)
    for shard, (turns, pushes) in enumerate(zip(applied, updates, strict=True)):
        applies[turns, shard] = pushes
    made = Turns(computes, turn, applies, np.array(ends), (), 0)
    return dataclasses.replace(made, ring=_ring(schedule, made), pending=_pending(schedule, made))


def _in_order(position: Ints) -> Any:
    """Returns the numbers of the pushes that a shard applies, in their order."""
    return np.argsort(position, kind="stable")[np.count_nonzero(position < 0) :]


def _by_deadline(schedule: Schedule) -> Any:
    """Orders pushes by when they are needed, or can be computed if that is later.

    Each replica's come in order.
    """
    position = schedule.position.astype(np.int64)
    position = np.where(position < 0, _NEVER, position).min(1)
    needs = np.maximum.reduceat(schedule.version.max(1), schedule.first[:-1])
    mine = _replica_by_replica(schedule)
    key = _not_after_the_next(schedule, np.maximum(position, needs))
    return mine[np.argsort(key[mine], kind="stable")]


def _replica_by_replica(schedule: Schedule) -> Any:
    """Returns the numbers of all pushes, those of each replica in order."""
    names = ("step", "life", "replica")
    return np.lexsort([getattr(schedule, name)[schedule.first[:-1]] for name in names])


def _not_after_the_next(schedule: Schedule, values: Any) -> Any:
    """Lowers the value of a push to that of the replica's next one, if it is larger.

    A push that no shard applies, since its replica has failed, must be computed before the next:
    the replica's local steps come in order.
    """
    mine = _replica_by_replica(schedule)
    replica = schedule.replica[schedule.first[:-1]][mine].astype(np.int64)
    ordered = values[mine] + replica * 2 * _NEVER
    found = np.empty(len(mine), np.int64)
    found[mine] = np.minimum.accumulate(ordered[::-1])[::-1] % (2 * _NEVER)
    return found


def _place(
    schedule: Schedule,
    pushes: Any,
    updates: list[Any],
    before: Any,
    border: Any,
    begin: int,
    turn: Any,
    applied: list[Any],
) -> int:
    """Finds the turns of everything between two borders.

    Args:
      schedule: the schedule.
      pushes: the pushes that are computed, in the order that is tried.
      updates: the pushes that each shard applies, in order.
      before: the versions at the first border.
      border: the versions at the second one.
      begin: the number of turns up to the first border.
      turn: the turn in which each push is computed; those of `pushes` are set.
      applied: the turns of each shard's updates; those between the borders are set.

    Returns:
      The number of turns up to the second border.
    """
    for ordered, rounds in ((pushes, _ROUNDS), (np.sort(pushes), 10 * len(pushes) + 10)):
        turn[ordered] = begin + np.arange(len(ordered))
        for _ in range(rounds):
            for s, of_shard in enumerate(updates):
                due = turn[of_shard[before[s] : border[s]]]
                applied[s][before[s] : border[s]] = _ascending(np.maximum(due, begin))
            needs = _needs(schedule, ordered, before, applied, begin)
            due = _ascending(np.maximum(needs, turn[ordered]))
            if np.array_equal(due, turn[ordered]):
                last = [turns[end - 1] for turns, end in zip(applied, border, strict=True) if end]
                return int(max([begin - 1, *due[-1:], *last])) + 1
            turn[ordered] = due
        # Two pushes wait for each other in the first order. In the order of time, none do.
    raise ValueError("Schedule: pushes wait for each other; number them in an order of time")


def _needs(schedule: Schedule, pushes: Any, before: Any, applied: list[Any], begin: int) -> Any:
    """Returns the first turn in which all versions exist that each push is computed at."""
    if not len(pushes):
        return pushes
    sizes = (schedule.first[pushes + 1] - schedule.first[pushes]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    gradients = np.repeat(schedule.first[pushes] - starts, sizes) + np.arange(sizes.sum())
    ready = np.full(len(gradients), begin, np.int64)
    for s, turns in enumerate(applied):
        version = schedule.version[gradients, s]
        late = version > before[s]
        ready[late] = np.maximum(ready[late], turns[version[late] - 1] + 1)
    return np.maximum.reduceat(ready, starts)


def _ascending(turns: Any) -> Any:
    """Returns the earliest strictly ascending turns that are not before the given ones."""
    at = np.arange(len(turns))
    return np.maximum.accumulate(turns - at) + at if len(turns) else turns


def _ring(schedule: Schedule, turns: Turns) -> tuple[int, ...]:
    """Returns how many versions of each shard must be kept; one more is being written."""
    versions = turns.versions()[turns.computed[schedule.push]]
    oldest = (versions - schedule.version).max(0, initial=0)
    return tuple(rounded(int(age) + 2) for age in oldest)


def _pending(schedule: Schedule, turns: Turns) -> int:
    """Returns how many pushes must be kept at once until the last shard has applied them."""
    longest = int((turns.needed_until(schedule) - turns.computed).max(initial=0))
    return rounded(longest + 1) if longest else 0


def rounded(count: int) -> int:
    """Returns a number that is at least as large, one of few.

    Schedules that differ only in their seeds then have programs of the same shapes, so that their
    program is compiled once. At most a quarter of the memory is wasted.
    """
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step
