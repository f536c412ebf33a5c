"""One shard of the parameter server: a slice of the parameters and a server rule.

Paper: section 4.1.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from dbjax.parameter_server.abstract import AbstractSlice
from dbjax.parameter_server.optimizer import ServerRule, ServerState
from dbjax.parameter_server.partition import is_absent, slice_nbytes
from dbjax.parameter_server.staleness import StalenessAccounting
from dbjax.runtime.interface import Future, Node, note, ready
from dbjax.types import Slice


class Snapshot(NamedTuple):
    """A shard's slice at one moment; its arrays are shared by reference and never change.

    Attributes:
      version: the number of pushes that the shard had taken, refused ones included; of a
        `VectorShard`, the number of the evaluation or of the iteration.
      params: the slice.
      nbytes: its size, in bytes.
    """

    version: int
    params: Slice
    nbytes: int


class Push(NamedTuple):
    """A replica's accumulated gradient for one shard.

    Attributes:
      replica: the name of the node that pushes.
      sequence: the number of the push among that replica's pushes: 0, 1, 2, ... A repeated push is
        not applied again.
      version: the version of the parameters at which the oldest of the gradients was computed.
      examples: the number of examples that the gradients were computed from.
      gradient: the sum of the gradients, each a mean over its mini-batch.
      nbytes: the size of the gradient on the wire, in bytes.
    """

    replica: str
    sequence: int
    version: int
    examples: int
    gradient: Slice
    nbytes: int


@dataclasses.dataclass
class ShardCounts:
    """What a shard has done so far.

    Attributes:
      applied: the number of pushes that were applied, without refused ones; set by `report`.
      refused: the number of pushes with a value that is not finite.
      repeated: the number of pushes that had been applied already.
      lost: the number of pushes that only an earlier incarnation of the shard had applied.
      examples: the number of examples that the applied gradients were computed from.
      bytes_fetched: the size of all slices sent to replicas, in bytes on the wire.
      bytes_pushed: the size of all gradients received, in bytes on the wire.
    """

    applied: int = 0
    refused: int = 0
    repeated: int = 0
    lost: int = 0
    examples: int = 0
    bytes_fetched: int = 0
    bytes_pushed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """A shard's statistics at one moment.

    Attributes:
      version: the version of its slice (see `Snapshot`).
      counts: what the shard has done so far.
      staleness: the staleness of the pushes that it has applied.
      pushed: the number of pushes that it has received, by the name of the replica.
    """

    version: int
    counts: ShardCounts
    staleness: StalenessAccounting
    pushed: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class ShardState:
    """The complete state of a shard, for a checkpoint or for a backup.

    Attributes:
      snapshot: the slice and its version.
      rule: the state of the server rule.
      sequences: the sequence number of each replica's last push, by the name of the replica.
      counts: what the shard has done so far.
      staleness: the staleness of the pushes that it has applied.
    """

    snapshot: Snapshot
    rule: ServerState
    sequences: dict[str, int]
    counts: ShardCounts
    staleness: StalenessAccounting


class Shard:
    """Holds one slice of the parameters and applies pushed gradients to it, one at a time.

    Paper: section 4.1. The shards run independently of each other, so at a given moment they need
    not have applied the same updates, nor in the same order.

    This class is an extension point. A subclass may take more arguments after these three, and may
    wrap `fetch` and `push`: do something before or after `super().fetch(replica)`, or return a
    `Future` of its result to reply later. It settles that future while another call is served, as
    `BoundedShard` of `dbjax.algorithms.ssp` does: a timer would run outside the shard's turn, and
    could not be replayed. The methods may not be coroutines, since a shard with a backup does not
    await them. If a subclass keeps state of its own, it must either be able to derive that state
    from the shard's, or extend `state` and `restore`.

    Args:
      node: the node that the shard runs on.
      params: its slice of the initial parameters.
      rule: the compiled server rule.

    Attributes:
      staleness: the staleness of the pushes that the shard has applied.
    """

    def __init__(self, node: Node, params: Slice, rule: ServerRule) -> None:
        self._node, self._rule = node, rule
        self._state = rule.init(params)
        rule.compile_for(params, self._state)  # before the first push arrives
        self._nbytes = slice_nbytes(params)
        self._snapshot = Snapshot(0, params, self._nbytes)
        self._sequences: dict[str, int] = {}
        self._waiting: list[tuple[int, Future[None]]] = []
        self._counts = ShardCounts()
        self.staleness = StalenessAccounting()

    def fetch(self, replica: str) -> Snapshot:
        """Returns the current slice, by reference (GETPARAMETERS).

        Args:
          replica: the name of the node that fetches.
        """
        self._counts.bytes_fetched += self._nbytes
        self.staleness.fetched(replica, self._snapshot.version)
        return self._snapshot

    def peek(self) -> Snapshot:
        """Returns the current slice to an observer, without counting it as a fetch."""
        return self._snapshot

    def report(self) -> Report:
        """Returns what the shard has done, for an observer; waits for the update in progress."""
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
        """Returns the number of pushes that the shard has received from a replica.

        A replica that comes back after a failure continues from there.

        Args:
          replica: the name of the node that pushes.
        """
        return self._sequences.get(replica, -1) + 1

    def state(self) -> ShardState:
        """Returns the complete state, which does not change when the shard does."""
        counts, staleness = dataclasses.replace(self._counts), self.staleness.copy()
        return ShardState(self._snapshot, self._state, dict(self._sequences), counts, staleness)

    def checkpoint(self) -> ShardState:
        """Returns the state to save in a checkpoint: the complete state."""
        return self.state()

    def restore(self, state: ShardState, *, checkpoint: bool = False) -> None:
        """Replaces the shard's complete state.

        Args:
          state: the new state.
          checkpoint: whether the state is from a checkpoint, so that replicas may hold parameters
            of later versions, which are lost.

        Raises:
          ValueError: the state belongs to another server rule.
        """
        rule_states = _kept(self._state.rule, state.rule.rule)
        self._snapshot, self._state = state.snapshot, state.rule._replace(rule=rule_states)
        self._sequences = dict(state.sequences)
        self._counts, self.staleness = dataclasses.replace(state.counts), state.staleness.copy()
        self.staleness.restored |= checkpoint
        self._wake()

    def push(self, push: Push) -> int:
        """Applies an accumulated gradient to the slice (APPLYGRADIENT).

        A push whose sequence number was served before is not applied again. A push with a value
        that is not finite is refused: it increments the version, but leaves the slice unchanged.
        Both are counted. So are lost pushes, whose sequence numbers lie between the last push and
        this one: a shard that was restored from a checkpoint does not have them. The update is
        dispatched asynchronously, as in jax.

        Args:
          push: the replica's gradient.

        Returns:
          The version of the slice after the update.

        Raises:
          ValueError: a piece is missing, or its shape or dtype differs from the parameters'.
        """
        replica, sequence = push.replica, push.sequence
        counts, before = self._counts, self._snapshot
        due = self.pushed(replica)
        if sequence < due:
            counts.repeated += 1
            return before.version
        if not isinstance(push.gradient, AbstractSlice):
            _check_like(push, before.params)
        note("applied", replica, sequence)
        counts.lost += sequence - due
        self._sequences[replica] = sequence
        counts.bytes_pushed += push.nbytes
        params, self._state = self._rule.apply(
            before.params, self._state, push.gradient, push.examples
        )
        counts.examples += push.examples
        version = before.version + 1
        self._snapshot = Snapshot(version, params, self._nbytes)
        self.staleness.applied(replica, push.version, before.version)
        if self._waiting:
            self._wake()
        return version

    def reached(self, version: int) -> Future[None]:
        """Answers once the shard has applied `version` updates (a deferred reply).

        Lost updates count, too. A shard that came back with a checkpointed state answers at once:
        it does not know how many updates it has lost, nor whether there will be any more.

        Args:
          version: the number of updates to wait for.
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
    """Returns the given states of a rule, without the values that this shard's rule does not keep.

    After resharding, a state may have values for leaves that the shard does not hold.
    """
    structures: list[Any] = [jax.tree.structure(tree, is_leaf=is_absent) for tree in (own, given)]
    if structures[0] != structures[1]:
        raise ValueError(
            "the state of the server rule belongs to another rule, or to another sharding over "
            "devices: resume with the rule and the sharding of the run"
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
