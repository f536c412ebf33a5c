"""Who does which portion of one evaluation: pure bookkeeping, no clock, no calls."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

from dbjax.algorithms.sandblaster.batches import Parts


@final
class WorkQueue:
    """The portions of one evaluation, each of them counted once.

    A portion is to do, then with one or more replicas, then computed (the first copy
    wins), then part of a sending, then delivered. Portions that a replica computed and
    did not begin to send are lost with it. A sending that began keeps its portions, so that
    shards which already have it know it again.

    Args:
      parts: the portions, see `Batches`.
      planned: replica -> the portions it should have (data affinity), where it has time.
      send_every: computed portions that a replica sends together.
    """

    def __init__(self, parts: Parts, planned: Mapping[int, Sequence[int]], send_every: int) -> None:
        self._part = {portion: part for part, some in parts.items() for portion in some}
        self._place = {p: i for some in parts.values() for i, p in enumerate(some)}
        self._send_every = send_every
        self._todo = {replica: deque(portions) for replica, portions in planned.items()}
        self._left = len(self._part)  # to do
        self._longest = [(-len(queue), replica) for replica, queue in self._todo.items() if queue]
        heapq.heapify(self._longest)
        self._holders: dict[int, set[int]] = {}  # portion -> replicas that are at a copy of it
        self._winner: dict[int, int] = {}  # portion -> whose copy counts
        self._unsent: dict[int, dict[str, list[int]]] = {}  # replica -> part -> portions
        self._spare: deque[int] = deque()  # computed by replicas that got stuck, and not sent
        self._spared: set[int] = set()
        self._again: deque[tuple[int, ...]] = deque()  # sendings whose sender died
        self._delivered: set[int] = set()

    def done(self) -> bool:
        """Whether the shards have everything."""
        return len(self._delivered) == len(self._part)

    def left(self) -> int:
        """Portions that nobody has begun."""
        return self._left

    def take(self, replica: int) -> int | None:
        """The next portion for a replica: one of its own, else of whoever has most left."""
        own = self._todo.setdefault(replica, deque())
        portion = own.popleft() if own else self._steal()
        if portion is not None:
            self._left -= 1
            self._holders.setdefault(portion, set()).add(replica)
        return portion

    def take_again(self) -> tuple[int, ...] | None:
        """A sending that a dead replica began, for another one to do."""
        return self._again.popleft() if self._again else None

    def copy(self, replica: int, portion: int) -> bool:
        """Takes a backup copy, if that makes sense for this replica."""
        if portion in self._winner or replica in self._holders[portion]:
            return False
        self._holders[portion].add(replica)
        return True

    def computed(self, replica: int, portion: int) -> bool:
        """Whether this copy is the first."""
        self._holders[portion].discard(replica)
        if portion in self._winner:
            if portion not in self._spared or not self._is_unsent(portion):
                return False
            self._unsent[self._winner[portion]][self._part[portion]].remove(portion)
        self._winner[portion] = replica
        mine = self._unsent.setdefault(replica, {})
        mine.setdefault(self._part[portion], []).append(portion)
        return True

    def not_computed(self, replica: int, portion: int) -> None:
        """A copy came to nothing: somebody has to make another."""
        self._holders[portion].discard(replica)
        if portion not in self._winner and not self._holders[portion]:
            self._give_back(replica, portion)

    def send(self, replica: int, *, everything: bool) -> list[tuple[int, ...]]:
        """What a replica should send now: whenever it has enough, and at the end the rest."""
        due: list[tuple[int, ...]] = []
        size = self._send_every
        for portions in self._unsent.get(replica, {}).values():
            while len(portions) >= size or (portions and everything):
                due.append(tuple(portions[:size]))
                del portions[:size]
        return due

    def is_computed(self, portion: int) -> bool:
        return portion in self._winner

    def part_of(self, portions: tuple[int, ...]) -> tuple[str, int]:
        """The part of the sample that a sending belongs to, and its place there."""
        return self._part[portions[0]], self._place[portions[0]]

    def undelivered(self, portions: tuple[int, ...]) -> None:
        """A sending did not come off: somebody has to do it again."""
        self._again.append(portions)

    def delivered(self, portions: tuple[int, ...]) -> bool:
        """All shards have a sending; whether that is news."""
        if portions[0] in self._delivered:
            return False
        self._delivered.update(portions)
        return True

    def is_delivered(self, portions: tuple[int, ...]) -> bool:
        return portions[0] in self._delivered

    def lost(self, replica: int, sendings: Sequence[tuple[int, ...]]) -> None:
        """A replica died, and with it what it had not sent and what it was sending."""
        gone = self._forget_unsent(replica)
        for portion, holders in self._holders.items():
            if replica in holders:
                holders.remove(replica)
                if portion not in self._winner:
                    gone.append(portion)
        for portion in gone:
            if not self._holders[portion]:
                self._give_back(replica, portion)
        self._again += [portions for portions in sendings if not self.is_delivered(portions)]

    def spare(self, replica: int) -> None:
        """A replica got stuck: others may compute what it had computed and not sent."""
        for portions in self._unsent.get(replica, {}).values():
            self._spare += portions

    def take_spare(self, replica: int) -> int | None:
        """Such a portion, if its replica still has not sent it."""
        while self._spare:
            portion = self._spare.popleft()
            others = self._winner.get(portion) != replica and not self._holders[portion]
            if others and self._is_unsent(portion):
                self._spared.add(portion)
                self._holders[portion].add(replica)
                return portion
        return None

    def _is_unsent(self, portion: int) -> bool:
        mine = self._unsent.get(self._winner.get(portion, -1), {})
        return portion in mine.get(self._part[portion], ())

    def _forget_unsent(self, replica: int) -> list[int]:
        gone = [p for some in self._unsent.pop(replica, {}).values() for p in some]
        for portion in gone:
            del self._winner[portion]
        return gone

    def doers(self) -> dict[int, list[int]]:
        """Replica -> the portions it did: the plan for next time."""
        done: dict[int, list[int]] = {}
        for portion in sorted(self._winner):
            done.setdefault(self._winner[portion], []).append(portion)
        return done

    def _give_back(self, replica: int, portion: int) -> None:
        queue = self._todo[replica]
        queue.append(portion)
        self._left += 1
        heapq.heappush(self._longest, (-len(queue), replica))

    def _steal(self) -> int | None:
        """From the end of the longest queue; lengths in the heap may be old, and too long."""
        while self._longest:
            length, replica = heapq.heappop(self._longest)
            queue = self._todo[replica]
            if not queue:
                continue
            if len(queue) < -length:
                heapq.heappush(self._longest, (-len(queue), replica))
                continue
            portion = queue.pop()
            heapq.heappush(self._longest, (-len(queue), replica))
            return portion
        return None
