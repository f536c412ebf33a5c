"""Reshards the shards' state for another number of shards, or of replicas."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from dbjax.parameter_server.optimizer import ServerState
from dbjax.parameter_server.partition import (
    Partition,
    Piece,
    compiled_join,
    compiled_split,
    is_absent,
    joined,
    slice_nbytes,
)
from dbjax.parameter_server.partition import whole as full
from dbjax.parameter_server.shard import ShardCounts, ShardState, Snapshot
from dbjax.parameter_server.staleness import StalenessAccounting
from dbjax.parameter_server.vector_shard import Finished, VectorState
from dbjax.runtime.node_names import replica_name
from dbjax.types import Slice


@dataclasses.dataclass(frozen=True)
class Resharding:
    """Converts slices of one partition to slices of another.

    Attributes:
      old: the partition of the given slices.
      new: the partition of the returned slices.
    """

    old: Partition
    new: Partition

    def __call__(self, slices: Sequence[Slice]) -> Sequence[Slice]:
        return compiled_split(self.new)(compiled_join(self.old)(tuple(slices)))


def reshard(states: Sequence[Any], old: Partition, new: Partition) -> list[Any]:
    """Converts the states of shards from one partition to another.

    A push that only some of the shards had applied counts as applied, since it was never
    acknowledged. Values that do not belong to a slice, such as the number of updates, are taken
    from the shard that was ahead.

    Args:
      states: the state of each shard under `old`.
      old: the partition of the states.
      new: the partition to convert to.

    Returns:
      The state of each shard under `new`.

    Raises:
      ValueError: the state of the server rule does not have the structure of the parameters.
    """
    if old.shards == new.shards:
        return list(states)
    return _resharded(list(states), Resharding(old, new), len(new.shards))


@functools.singledispatch
def _of_kind(first: Any, states: list[Any], resharding: Resharding, shards: int) -> list[Any]:
    """Reshards any other kind of state: those of its fields that hold the states of shards."""
    found = {
        field.name: _resharded([getattr(s, field.name) for s in states], resharding, shards)
        for field in dataclasses.fields(first)
        if isinstance(getattr(first, field.name), (ShardState, VectorState))
    }
    return [
        dataclasses.replace(first, **{name: values[i] for name, values in found.items()})
        for i in range(shards)
    ]


def _resharded(states: list[Any], resharding: Resharding, shards: int) -> list[Any]:
    return _of_kind(states[0], states, resharding, shards)


@_of_kind.register
def _of_shards(
    first: ShardState, states: list[Any], resharding: Resharding, shards: int
) -> list[Any]:
    ahead = max(states, key=lambda s: s.snapshot.version)
    version = ahead.snapshot.version
    slices = resharding([s.snapshot.params for s in states])
    rules = _rules([s.rule.rule for s in states], [s.snapshot.params for s in states], resharding)
    sequences: dict[str, int] = {}
    earlier: collections.Counter[int] = collections.Counter()
    for state in states:
        earlier += state.staleness.histogram + state.staleness.earlier
        for replica, sequence in state.sequences.items():
            sequences[replica] = max(sequence, sequences.get(replica, -1))
    total = _total([s.counts for s in states], ahead.counts)
    none = dataclasses.replace(ahead.counts, repeated=0, lost=0, bytes_fetched=0, bytes_pushed=0)
    return [
        ShardState(
            Snapshot(version, params, slice_nbytes(params)),
            ServerState(rule, ahead.rule.refused),
            sequences,
            none if i else total,
            StalenessAccounting(
                version=version, began=version, earlier=earlier if i == 0 else type(earlier)()
            ),
        )
        for i, (params, rule) in enumerate(zip(slices, rules, strict=True))
    ]


@_of_kind.register
def _of_vectors(
    first: VectorState, states: list[Any], resharding: Resharding, shards: int
) -> list[Any]:
    def all_of(named: list[dict[str, Slice]]) -> list[dict[str, Slice]]:
        made = {name: resharding([one[name] for one in named]) for name in named[0]}
        return [{name: slices[i] for name, slices in made.items()} for i in range(shards)]

    last = max(set.intersection(*({f.iteration for f in s.finished} for s in states)))
    finished = [next(f for f in s.finished if f.iteration == last) for s in states]
    vectors = all_of([f.vectors for f in finished])
    return [
        dataclasses.replace(first, vectors=mine, finished=(Finished(last, finished[0].memo, mine),))
        for mine in vectors
    ]


def _rules(
    rules: Sequence[tuple[Any, ...]], params: Sequence[Slice], resharding: Resharding
) -> list[tuple[Any, ...]]:
    """Returns the states of the server rule for each new shard, one for each of its trees.

    A value with one element for each element of a leaf is partitioned as the leaf is. Any other
    value, such as a count, goes to all shards; a shard drops the values that its rule does not keep
    (`Shard.restore`).

    Raises:
      ValueError: the state does not have the structure of the parameters.
    """
    whole = jax.eval_shape(resharding.old.join, params)
    leaves = [(path, leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(whole)]
    flat = [_flat(state) for of_shard in rules for state in of_shard]
    paths, structure = [path for path, _ in flat[0][0]], flat[0][1]
    if any(other != structure for _, other in flat):
        raise ValueError(
            "the server rule's state cannot be resharded: use the same number of shards as before"
        )
    old = [tree for shard in range(len(rules)) for tree in resharding.old.held(shard)]
    if len(old) != len(flat):  # the rule of a single shard sees whole leaves, now as before
        return list(rules)
    columns = [
        _column(leaves, path, list(zip(old, values, strict=True)))
        for path, *values in zip(paths, *([v for _, v in found] for found, _ in flat), strict=True)
    ]
    return [
        tuple(structure.unflatten([column(tree) for column in columns]) for tree in of_shard)
        for of_shard in map(resharding.new.held, range(len(resharding.new.shards)))
    ]


def _flat(state: Any) -> tuple[list[tuple[Any, Any]], Any]:
    found: tuple[list[tuple[Any, Any]], Any] = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=is_absent
    )
    return found


HeldPieces = dict[int, Piece]  # leaf -> the piece of it that a tree of a shard holds


def _column(
    leaves: Sequence[tuple[Any, tuple[int, ...]]],
    path: Any,
    values: Sequence[tuple[HeldPieces, Any]],
) -> Callable[[HeldPieces], Any]:
    """Returns a function from a new tree's pieces to one value of the rule's state.

    Args:
      leaves: the path and the shape of each leaf of the parameters.
      path: the path of the value in the rule's state.
      values: for each old tree, the pieces that it holds, and the value.
    """
    kept = [(tree, value) for tree, value in values if not is_absent(value)]
    if not kept:
        return lambda tree: optax.MaskedNode()
    leaf = _leaf_of(leaves, path)
    shape = leaves[leaf][1] if leaf is not None else ()
    if (
        leaf is None
        or not shape
        or not all(_is_like(value, tree, leaf, shape) for tree, value in kept)
    ):
        return lambda tree: kept[0][1]
    number = leaf
    blocks = [(tree[number].region or full(shape), value) for tree, value in kept]
    array = joined(blocks)
    return lambda tree: tree[number].of(array) if number in tree else optax.MaskedNode()


def _leaf_of(leaves: Sequence[tuple[Any, tuple[int, ...]]], path: Any) -> int | None:
    """Returns the leaf of the parameters whose path is the longest that ends this path."""
    found = [
        (len(end), i) for i, (end, _) in enumerate(leaves) if path[len(path) - len(end) :] == end
    ]
    return max(found)[1] if found else None


def _is_like(value: Any, tree: HeldPieces, leaf: int, shape: tuple[int, ...]) -> bool:
    """Returns whether a value has one element for each element of the tree's piece of the leaf."""
    region = tree[leaf].region or full(shape) if leaf in tree else ()
    return bool(region) and value.shape == tuple(stop - start for start, stop in region)


def _total(counts: list[ShardCounts], ahead: ShardCounts) -> ShardCounts:
    """Returns the counts of all shards: what each shard counts for itself is added up."""
    summed = {
        name: sum(getattr(c, name) for c in counts)
        for name in ("repeated", "lost", "bytes_fetched", "bytes_pushed")
    }
    return dataclasses.replace(ahead, **summed)


def redistribute_pushes(states: Sequence[Any], old: int, new: int) -> list[Any]:
    """Distributes the number of pushes over another number of replicas.

    The new replicas together continue where the old ones together stopped. This applies only to
    asynchronous replicas; others take their steps together, or are told what to compute.

    Args:
      states: the state of each shard.
      old: the number of replicas so far.
      new: the new number of replicas.

    Returns:
      The new state of each shard.
    """
    return [
        _with_pushes_of(state, new) if old != new and isinstance(state, ShardState) else state
        for state in states
    ]


def _with_pushes_of(state: ShardState, replicas: int) -> ShardState:
    pushes = sum(sequence + 1 for sequence in state.sequences.values())
    each = -(-pushes // replicas)
    return dataclasses.replace(
        state, sequences={replica_name(r): each - 1 for r in range(replicas)}
    )
