"""One shard of the parameter server: a slice, a server rule, versions (section 4.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dbjax.parameter_server.optimizer import ServerRule, ServerState
from dbjax.parameter_server.partition import is_absent, slice_nbytes
from dbjax.parameter_server.staleness import StalenessAccounting
from dbjax.runtime.interface import Future, Node, ready
from dbjax.types import Slice


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A slice as it was after `version` pushes. References, never copied, never changed."""

    version: int
    params: Slice
    nbytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Push:
    """A replica's accrued gradient for one shard.

    Attributes:
      replica: who pushes.
      sequence: number of the push among that replica's: 0, 1, 2, ... A repeated one is not
        applied again.
      version: of the parameters that the oldest of the accrued gradients was computed at.
      examples: how many the gradients saw.
      gradient: the sum of the accrued gradients, each a mean over its mini-batch.
    """

    replica: str
    sequence: int
    version: int
    examples: int
    gradient: Slice
    nbytes: int


@dataclasses.dataclass
class ShardCounts:
    """What a shard has done so far; bytes as they would travel, one way."""

    applied: int = 0
    refused: int = 0  # pushes with a value that is not finite
    repeated: int = 0  # pushes that had been applied already
    lost: int = 0  # pushes that an earlier life of the shard had applied
    examples: int = 0
    bytes_fetched: int = 0
    bytes_pushed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """A shard's books at one moment; `pushed`: how many pushes of each replica it has had."""

    version: int
    counts: ShardCounts
    staleness: StalenessAccounting
    pushed: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class ShardState:
    """All that a shard knows, for its checkpoint or for another copy of it."""

    snapshot: Snapshot
    rule: ServerState
    sequences: dict[str, int]
    counts: ShardCounts
    staleness: StalenessAccounting


class Shard:
    """Holds one slice of the parameters and applies pushed gradients to it, one at a time.

    Paper: section 4.1. The shards run independently of each other, so at a given moment they need
    not have applied the same updates, nor in the same order.

    This is an extension point. A subclass may take more arguments after these three, and may wrap
    `fetch` and `push`: do something before or after `super().fetch(replica)`, or return a `Future`
    of its result to reply later. What it keeps beside the shard's own state it must be able to
    tell from that state, or add in `state` and `restore`.

    Args:
      node: where it runs.
      params: its slice.
      rule: the server rule, compiled.

    Attributes:
      staleness: of the pushes that it has applied.
    """

    def __init__(self, node: Node, params: Slice, rule: ServerRule) -> None:
        self._node, self._rule = node, rule
        self._state = rule.init(params)
        rule.apply.lower(params, self._state, params, 1).compile()  # before anybody pushes
        self._nbytes = slice_nbytes(params)
        self._snapshot = Snapshot(0, params, self._nbytes)
        self._sequences: dict[str, int] = {}
        self._waiting: list[tuple[int, Future[None]]] = []
        self._counts = ShardCounts()
        self.staleness = StalenessAccounting()

    def fetch(self, replica: str) -> Snapshot:
        """GETPARAMETERS: the current slice, by reference."""
        self._counts.bytes_fetched += self._nbytes
        self.staleness.fetched(replica, self._snapshot.version)
        return self._snapshot

    def peek(self) -> Snapshot:
        """The current slice, for an observer: leaves no trace."""
        return self._snapshot

    def report(self) -> Report:
        """What the shard has done, for an observer. Waits for updates under way."""
        refused, their_examples = map(int, self._state.refused)
        counts = dataclasses.replace(
            self._counts,
            applied=self._snapshot.version - refused,
            refused=refused,
            examples=self._counts.examples - their_examples,
        )
        pushed = {replica: self.pushed(replica) for replica in self._sequences}
        return Report(self._snapshot.version, counts, self.staleness.copy(), pushed)

    def pushed(self, replica: str) -> int:
        """How many pushes of a replica it has had: where one goes on that comes back."""
        return self._sequences.get(replica, -1) + 1

    def state(self) -> ShardState:
        """All that it knows; it may go on meanwhile."""
        counts, staleness = dataclasses.replace(self._counts), self.staleness.copy()
        return ShardState(self._snapshot, self._state, dict(self._sequences), counts, staleness)

    def checkpoint(self) -> ShardState:
        """What of it outlives the run: all."""
        return self.state()

    def restore(self, state: ShardState, *, checkpoint: bool = False) -> None:
        """Knows what a state says, and nothing else.

        Args:
          checkpoint: the state is of an earlier time: replicas may know versions that are lost.

        Raises:
          ValueError: the state is of another server rule.
        """
        rule_states = _kept(self._state.rule, state.rule.rule)
        self._snapshot, self._state = state.snapshot, state.rule._replace(rule=rule_states)
        self._sequences = dict(state.sequences)
        self._counts, self.staleness = dataclasses.replace(state.counts), state.staleness.copy()
        self.staleness.restored |= checkpoint
        self._wake()

    def push(self, push: Push) -> int:
        """APPLYGRADIENT: applies an accrued gradient; returns the version after it.

        A push whose sequence number was served before is not applied again. One with a
        value that is not finite is refused: it makes a version that differs in nothing.
        Both are counted, and so are pushes between the last and this one, which a shard that
        was restored from a checkpoint does not have. Returns while the update is under way, as
        jax does.

        Raises:
          ValueError: a piece is missing, or has another shape or dtype than the parameters.
        """
        due = self.pushed(push.replica)
        if push.sequence < due:
            self._counts.repeated += 1
            return self._snapshot.version
        _check_like(push, self._snapshot.params)
        self._counts.lost += push.sequence - due
        self._sequences[push.replica] = push.sequence
        self._counts.bytes_pushed += push.nbytes
        before = self._snapshot
        params, self._state = self._rule.apply(
            before.params, self._state, push.gradient, push.examples
        )
        self._counts.examples += push.examples
        self._snapshot = Snapshot(before.version + 1, params, self._nbytes)
        self.staleness.applied(push.replica, push.version, before.version)
        self._wake()
        return before.version + 1

    def reached(self, version: int) -> Future[None]:
        """Answers once the shard has applied `version` updates (a deferred reply).

        Those that it has lost count. One that goes on from a checkpoint does not know how many
        they are, nor whether there will be any more: it answers at once.
        """
        if self._has_reached(version):
            return ready(None)
        reached: Future[None] = Future(f"version {version} of {self._node.name}")
        self._waiting.append((version, reached))
        return reached

    def _wake(self) -> None:
        due = [waiting for waiting in self._waiting if self._has_reached(waiting[0])]
        if due:
            self._waiting = [waiting for waiting in self._waiting if waiting not in due]
            for _, future in due:
                future.set_result(None)

    def _has_reached(self, version: int) -> bool:
        forgetful = self.staleness.restored and self._node.returned
        return forgetful or self._snapshot.version + self._counts.lost >= version


def _kept(own: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The states of a rule that are given, without what this shard's rule does not keep.

    After resharding a state may have values for leaves that the shard does not hold.
    """
    structures: list[Any] = [jax.tree.structure(tree, is_leaf=is_absent) for tree in (own, given)]
    if structures[0] != structures[1]:
        raise ValueError(
            "the state of the server rule is that of another rule, or of another cut over devices: "
            "resume with those of the run"
        )
    leaves, values = (jax.tree.leaves(tree, is_leaf=is_absent) for tree in (own, given))
    pairs = zip(leaves, values, strict=True)
    kept = [mine if is_absent(mine) else value for mine, value in pairs]
    states: tuple[Any, ...] = structures[0].unflatten(kept)
    return states


def _check_like(push: Push, params: Slice) -> None:
    gradient = push.gradient
    if gradient.keys() != params.keys():
        missing = sorted(params.keys() ^ gradient.keys())
        raise ValueError(f"push of {push.replica}: pieces do not match the slice: {missing}")
    for name, value in params.items():
        got = gradient[name]
        if got.shape != value.shape or got.dtype != value.dtype:
            raise ValueError(
                f"push of {push.replica}: {name} is {got.dtype}{list(got.shape)}, "
                f"the parameters are {value.dtype}{list(value.shape)}"
            )
