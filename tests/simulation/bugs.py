"""Bugs to be planted in the store, one at a time, to see that the simulation finds them.

Each is a subtle mistake that the code, and most of its tests, would survive.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from dbjax.parameter_server import Shard
from dbjax.parameter_server.replication import ReplicatedService
from dbjax.parameter_server.vector_shard import VectorShard
from dbjax.runtime.interface import Future, ready
from tests.simulation.book import Violation
from tests.simulation.case import Case, case_of
from tests.simulation.simulate import simulate


def replies_before_the_backup_has_followed(self: ReplicatedService, reply: Any) -> Future[Any]:
    """Whoever called is told that it is safe while only the primary has it."""
    return reply if isinstance(reply, Future) else ready(reply)


def forgets_sequences(self: Shard, state: Any, *, checkpoint: bool = False) -> None:
    """A copy is given everything but the numbers of the pushes that it has."""
    _RESTORE(self, dataclasses.replace(state, sequences={}), checkpoint=checkpoint)


def applies_what_is_repeated(self: Shard, push: Any) -> int:
    """A push that is sent again, since the reply was lost, is applied again."""
    if push.sequence < self.pushed(push.replica):
        self._sequences[push.replica] = push.sequence - 1
    return _PUSH(self, push)


def changes_a_snapshot(self: Shard, push: Any) -> int:
    """The memory of the old parameters is used again, whoever still looks at them."""
    before = self._snapshot
    reply = _PUSH(self, push)
    if self._snapshot is not before and before.version % 3 == 2:
        before.params.update(self._snapshot.params)
    return reply


def forgets_portions(self: VectorShard) -> Any:
    """A copy is given the sums, but not whose gradients they are."""
    return dataclasses.replace(_STATE(self), counted=())


def leads_at_once(self: ReplicatedService, place: int) -> bool:
    """A recovering copy becomes the primary at once when it hears that the other recovers, too."""
    if self._role == "recovering" and place < self._place:
        return False
    self._become_primary()
    self._install()
    return True


_RESTORE, _PUSH, _STATE = Shard.restore, Shard.push, VectorShard.state
Patch = tuple[Any, str, Callable[..., Any]]
BUGS: dict[str, Patch] = {
    made.__name__: (where, name, made)
    for where, name, made in (
        (ReplicatedService, "_when_both_have_it", replies_before_the_backup_has_followed),
        (Shard, "restore", forgets_sequences),
        (Shard, "push", applies_what_is_repeated),
        (Shard, "push", changes_a_snapshot),
        (VectorShard, "state", forgets_portions),
        (ReplicatedService, "peer_recovering", leads_at_once),
    )
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The store has that bug in the block."""
    where, attribute, made = BUGS[name]
    right = getattr(where, attribute)

    @functools.wraps(right)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs)

    with mock.patch.object(where, attribute, wrong):
        yield


def found(name: str, seed: int, most: int) -> tuple[int, Case, Violation] | None:
    """Schedules from that seed on, until one finds the bug: how many, which, and what it says."""
    with planted(name):
        for count in range(1, most + 1):
            case = case_of(seed + count - 1)
            try:
                simulate(case)
            except Violation as violation:
                return count, case, violation
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.bugs", description=__doc__)
    parser.add_argument("--bug", choices=BUGS, help="all of them, if none is named")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--most", type=int, default=1000, help="schedules at most")
    given = parser.parse_args()
    for name in [given.bug] if given.bug else BUGS:
        outcome = found(name, given.seed, given.most)
        said = f"not found in {given.most} schedules"
        if outcome is not None:
            count, case, violation = outcome
            said = f"schedule {count} (seed {case.seed}): {violation}"
        print(f"{name}: {said}", flush=True)


if __name__ == "__main__":
    main()
