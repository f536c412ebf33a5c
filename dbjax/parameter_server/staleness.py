"""Accounts for the staleness of pushes on one shard, and checks it by an identity.

The staleness of a push is the number of updates that the shard applied between serving the
parameters at which the gradient was computed, and applying the gradient. An update that falls
between two consecutive pushes of a replica comes either before the replica's fetch (it counts
towards the `offset`) or after it (it counts towards the staleness). The age of a replica is the
number of updates since its last push. Summed over replicas, after T updates:

    staleness + offsets + ages in flight = sum over replicas (T - joined) - T

where `joined` is the version at the replica's first fetch. The right side is (M - 1) T when all M
replicas joined at the start. If every fetch is served right after the replica's previous push, the
offsets are 0 (proof 6).

The identity shows that every update was recorded exactly once: a push that is applied but not
recorded, or recorded twice, violates it. It does not show that a push names the right version,
because the version at which the gradient was computed cancels between the push's staleness and its
offset. The accounting only checks that the replica has fetched that version
(`StalenessAccounting.applied`).
"""

from __future__ import annotations

import collections
import copy
import dataclasses


@dataclasses.dataclass(slots=True)
class _Replica:
    joined: int  # version at the first fetch
    last: int  # version right after its last push, or `joined`
    served: collections.deque[int]  # versions of its fetches that a push may refer to


@dataclasses.dataclass
class StalenessAccounting:
    """Staleness of the pushes applied by one shard, in server updates.

    Attributes:
      histogram: the number of pushes, by their staleness.
      version: the version of the slice after the latest push.
      began: the version at which this accounting begins.
      earlier: the histogram from before the parameters were resharded.
      restored: whether an earlier incarnation of the shard may have served versions.
      orphans: the number of pushes whose gradient was computed at a version that was lost.
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
        """Records that a replica was served the parameters of a version."""
        known = self._replicas.get(replica)
        if known is None:
            known = self._replicas[replica] = _Replica(version, version, collections.deque())
        known.served.append(version)

    def applied(self, replica: str, computed_at: int, version: int) -> None:
        """Records that a push is applied.

        If the shard was restored, the gradient may have been computed at a version that was lost.
        The push is then an orphan: it counts as if it had been computed at the current version.

        Args:
          replica: the name of the node that pushed.
          computed_at: the version at which its gradient was computed.
          version: the version to which the push is applied.

        Raises:
          RuntimeError: the replica never fetched that version, so the parameter server is broken.
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

    def fetched_last(self) -> list[int]:
        """Returns the version of the latest fetch of each replica."""
        replicas = self._replicas.values()
        return [known.served[-1] if known.served else known.last for known in replicas]

    def _served(self, replica: str, version: int) -> bool:
        known = self._replicas.get(replica)
        return known is not None and version in known.served

    def copy(self) -> StalenessAccounting:
        """Returns a copy, which does not change when the original does."""
        return copy.deepcopy(self)

    def balance(self) -> tuple[int, int]:
        """Returns both sides of the module's identity.

        They are equal if every update was recorded exactly once.
        """
        total = self.version
        staleness = sum(delay * times for delay, times in self.histogram.items())
        ages = sum(total - known.last for known in self._replicas.values())
        exposure = sum(total - known.joined for known in self._replicas.values())
        return staleness + self._offsets + ages, exposure - (total - self.began)
