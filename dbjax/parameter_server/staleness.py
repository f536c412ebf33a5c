"""Bookkeeping of staleness on one shard, and an identity that the books satisfy.

Staleness of a push: updates that the shard applied between serving the parameters that
the gradient was computed at, and applying it. Between a replica's consecutive pushes,
T - (its last push) updates are applied; each falls either before the replica's next
fetch (`offset`) or after it (staleness). Summed over replicas, after T applications:

    staleness + offsets + ages in flight = sum over replicas (T - joined) - T

which is (M - 1) T when all M joined at the start. With every fetch served right behind
the push before it, the offsets are 0 (proof 6).

What the identity shows is that every update was booked once: a push that is applied and not
booked, or booked twice, breaks it. It does not show that a push names the right version: the
version that the gradient was computed at cancels between a push's staleness and its offset. Of
that version the books know only that the replica fetched it (`StalenessAccounting.applied`).
"""

from __future__ import annotations

import collections
import copy
import dataclasses


@dataclasses.dataclass
class _Replica:
    joined: int  # version at the first fetch
    last: int  # version right after its last push, or `joined`
    served: collections.deque[int]  # versions of its fetches that a push may refer to
    pushed: bool = False


@dataclasses.dataclass
class StalenessAccounting:
    """Staleness of the pushes applied by one shard, in server updates.

    Attributes:
      histogram: staleness -> how many pushes.
      version: after the latest of them.
      began: the version at which these books begin.
      earlier: the histogram of shards that were cut otherwise, before.
      restored: whether an earlier life may have served versions.
      orphans: pushes whose gradient was of a version that is no more.
    """

    histogram: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    version: int = 0
    began: int = 0
    earlier: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    restored: bool = False
    orphans: int = 0
    _offsets: int = 0
    _replicas: dict[str, _Replica] = dataclasses.field(default_factory=dict)

    def fetched(self, replica: str, version: int) -> None:
        known = self._replicas.get(replica)
        if known is None:
            known = self._replicas[replica] = _Replica(version, version, collections.deque())
        known.served.append(version)

    def applied(self, replica: str, computed_at: int, version: int) -> None:
        """A push computed at version `computed_at` is applied to `version`.

        Where the shard was restored, the gradient may be of a version that is no more: such an
        orphan has no staleness, and counts as if it had been computed at this version.

        Raises:
          RuntimeError: the replica never fetched that version (the store is broken).
        """
        if self.restored and not self._served(replica, computed_at):
            self.orphans += 1
            computed_at = version
            self.fetched(replica, version)
        known = self._replicas.get(replica)
        if known is None or computed_at not in known.served:
            raise RuntimeError(f"{replica} pushed against version {computed_at}, never fetched")
        while known.served[0] != computed_at:
            known.served.popleft()  # older fetches can no longer be referred to
        self.histogram[version - computed_at] += 1
        self._offsets += computed_at - known.last
        known.last = self.version = version + 1
        known.pushed = True

    def _served(self, replica: str, version: int) -> bool:
        known = self._replicas.get(replica)
        return known is not None and version in known.served

    def copy(self) -> StalenessAccounting:
        """The books as they stand; the original may go on."""
        return copy.deepcopy(self)

    def pushers(self) -> int:
        """How many replicas have pushed at least once."""
        return sum(known.pushed for known in self._replicas.values())

    def balance(self) -> tuple[int, int]:
        """Both sides of the identity above; they are equal if every update was booked once."""
        total = self.version
        staleness = sum(delay * times for delay, times in self.histogram.items())
        ages = sum(total - known.last for known in self._replicas.values())
        exposure = sum(total - known.joined for known in self._replicas.values())
        return staleness + self._offsets + ages, exposure - (total - self.began)
