"""Keeps track of the portions of one evaluation, without a clock and without calls."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

from dbjax.algorithms.sandblaster.batches import Parts


@final
class WorkQueue:
    """Assigns the portions of one evaluation to replicas, and counts each of them once.

    A portion is first in a queue, then held by one or more replicas, then computed (the first copy
    counts), then part of a group whose gradients are sent together, then delivered. Portions that a
    replica computed but did not begin to send are lost when it fails. A group that a replica began
    to send keeps its portions, so that shards that already have the group recognise it.

    Args:
      parts: the portions, by the part of the sample that they belong to, see `Batches`.
      planned: for each replica, the portions it should compute if it has time (data affinity).
      send_every: the number of computed portions in a group.
    """

    def __init__(self, parts: Parts, planned: Mapping[int, Sequence[int]], send_every: int) -> None:
        self._part = {portion: part for part, some in parts.items() for portion in some}
        self._place = {p: i for some in parts.values() for i, p in enumerate(some)}
        self._send_every = send_every
        self._todo = {replica: deque(portions) for replica, portions in planned.items()}
        self._left = len(self._part)  # the number of portions in the queues
        self._longest = [(-len(queue), replica) for replica, queue in self._todo.items() if queue]
        heapq.heapify(self._longest)
        self._holders: dict[int, set[int]] = {}  # portion -> replicas that compute a copy of it
        self._winner: dict[int, int] = {}  # portion -> the replica whose copy counts
        self._unsent: dict[int, dict[str, list[int]]] = {}  # replica -> part -> portions
        self._spare: deque[int] = deque()  # portions computed by slow replicas, and not sent
        self._spared: set[int] = set()
        self._again: deque[tuple[int, ...]] = deque()  # groups to send again
        self._delivered: set[int] = set()

    def done(self) -> bool:
        """Returns whether the shards have all portions."""
        return len(self._delivered) == len(self._part)

    def left(self) -> int:
        """Returns the number of portions that no replica has begun."""
        return self._left

    def take(self, replica: int) -> int | None:
        """Assigns the next portion to a replica.

        It is one of the replica's own, or else one of the replica that has the most left.

        Returns:
          The portion; None: no portion is left.
        """
        own = self._todo.setdefault(replica, deque())
        portion = own.popleft() if own else self._steal()
        if portion is not None:
            self._left -= 1
            self._holders.setdefault(portion, set()).add(replica)
        return portion

    def take_again(self) -> tuple[int, ...] | None:
        """Returns a group that another replica began to send but did not deliver, or None."""
        return self._again.popleft() if self._again else None

    def copy(self, replica: int, portion: int) -> bool:
        """Assigns a backup copy of a portion to a replica, if that is useful.

        Returns:
          Whether it did: not if the portion is computed, or the replica already works on it.
        """
        if portion in self._winner or replica in self._holders[portion]:
            return False
        self._holders[portion].add(replica)
        return True

    def computed(self, replica: int, portion: int) -> bool:
        """Records that a replica has computed a portion.

        Returns:
          Whether this copy counts: the first one does, or one that replaces a copy that a slow
          replica has not sent.
        """
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
        """Records that a replica did not compute a portion; if no one else does, it is requeued."""
        self._holders[portion].discard(replica)
        if portion not in self._winner and not self._holders[portion]:
            self._give_back(replica, portion)

    def send(self, replica: int, *, everything: bool) -> list[tuple[int, ...]]:
        """Returns the groups of portions that a replica should send now.

        Args:
          replica: the replica.
          everything: whether to include a last group of fewer than `send_every` portions.
        """
        due: list[tuple[int, ...]] = []
        size = self._send_every
        for portions in self._unsent.get(replica, {}).values():
            while len(portions) >= size or (portions and everything):
                due.append(tuple(portions[:size]))
                del portions[:size]
        return due

    def is_computed(self, portion: int) -> bool:
        """Returns whether a replica has computed the portion."""
        return portion in self._winner

    def part_of(self, portions: tuple[int, ...]) -> tuple[str, int]:
        """Returns the part of the sample that a group belongs to, and its place in that part."""
        return self._part[portions[0]], self._place[portions[0]]

    def undelivered(self, portions: tuple[int, ...]) -> None:
        """Records that a group was not delivered; `take_again` returns it."""
        self._again.append(portions)

    def delivered(self, portions: tuple[int, ...]) -> bool:
        """Records that all shards have a group; returns whether this was not known yet."""
        if portions[0] in self._delivered:
            return False
        self._delivered.update(portions)
        return True

    def is_delivered(self, portions: tuple[int, ...]) -> bool:
        """Returns whether all shards have a group."""
        return portions[0] in self._delivered

    def lost(self, replica: int, sendings: Sequence[tuple[int, ...]]) -> None:
        """Records that a replica has failed.

        What it was computing, and what it had computed but not begun to send, is queued again.

        Args:
          replica: the replica.
          sendings: the groups that it was sending, which others have to send again.
        """
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
        """Lets other replicas compute what a slow replica has computed but not sent."""
        for portions in self._unsent.get(replica, {}).values():
            self._spare += portions

    def take_spare(self, replica: int) -> int | None:
        """Assigns a portion released by `spare`, if its replica still has not sent it."""
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
        """Returns, for each replica, the portions it computed: the plan for the next evaluation."""
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
        """Takes a portion from the end of the longest queue.

        The lengths in the heap may be outdated, and then are too long.
        """
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
