"""Stale-synchronous parallel: no replica is more than `bound` pushes ahead of another.

Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server".
A replica that fails for good stops the others. After a shard without a backup has lost pushes, the
bound holds for a replica from its next push on.
"""

import dataclasses
import functools
from typing import Any

from dbjax.algorithms import downpour
from dbjax.program import GatedShard, Program, Restore, Runtime, Task, bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(downpour.Config):
    """Downpour SGD, with `bound`: how many pushes a replica may be ahead of the slowest."""

    bound: int = bounded(2, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap or self.n_fetch > self.n_push:
            raise ValueError(
                f"ssp.overlap={self.overlap}, n_fetch={self.n_fetch}: the bound holds only if a "
                f"replica waits for a fetch after each push; set overlap=False and n_fetch to at "
                f"most n_push={self.n_push}"
            )


class BoundedShard(GatedShard):
    """Delays a fetch until its replica is at most `bound` pushes ahead of the slowest."""

    def __init__(self, *args: Any, bound: int) -> None:
        super().__init__(*args)
        self._bound = bound

    def may_fetch(self, replica: str) -> bool:
        """Returns whether the replica is close enough to the slowest."""
        return self.clocks.get(replica, 0) <= self._bound + min(self.clocks.values(), default=0)


def program(
    runtime: Runtime, task: Task, config: Config, restore: Restore | None = None
) -> Program:
    """Places Downpour SGD with shards of class `BoundedShard`."""
    shard = functools.partial(BoundedShard, bound=config.bound)
    return downpour.program(runtime, task, config, restore, shard=shard)
