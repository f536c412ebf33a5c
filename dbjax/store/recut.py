"""The state of shards, cut anew for another number of them, or of replicas."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax

from dbjax.store.delays import Delays
from dbjax.store.partition import Partition, compiled_join, compiled_split, slice_nbytes
from dbjax.store.shard import Counts, ServerState, ShardState, Snapshot
from dbjax.store.vectors import Finished, VectorState
from dbjax.types import Slice


class Cuts(Protocol):
    """From slices as they were to slices as they shall be."""

    def __call__(self, slices: Sequence[Slice]) -> Sequence[Slice]: ...


def recut(states: Sequence[Any], old: Partition, new: Partition) -> list[Any]:
    """States of shards under `old`, for those of `new`.

    A push that some shards had and others not counts as made: it was never acknowledged.
    What is not of one slice, such as counts of updates, is that of the shard that was ahead.
    """
    if old.shards == new.shards:
        return list(states)

    def cuts(slices: Sequence[Slice]) -> Sequence[Slice]:
        return compiled_split(new)(compiled_join(old)(tuple(slices)))

    return _recut(list(states), cuts, len(new.shards))


@functools.singledispatch
def _of_kind(first: Any, states: list[Any], cuts: Cuts, shards: int) -> list[Any]:
    """For another kind of state: its fields that hold the states of shards, one by one."""
    found = {
        field.name: _recut([getattr(s, field.name) for s in states], cuts, shards)
        for field in dataclasses.fields(first)
        if isinstance(getattr(first, field.name), (ShardState, VectorState))
    }
    return [
        dataclasses.replace(first, **{name: values[i] for name, values in found.items()})
        for i in range(shards)
    ]


def _recut(states: list[Any], cuts: Cuts, shards: int) -> list[Any]:
    return _of_kind(states[0], states, cuts, shards)


@_of_kind.register
def _of_shards(first: ShardState, states: list[Any], cuts: Cuts, shards: int) -> list[Any]:
    ahead = max(states, key=lambda s: s.snapshot.version)
    version = ahead.snapshot.version
    slices = cuts([s.snapshot.params for s in states])
    rules = _rules([s.rule.rule for s in states], [s.snapshot.params for s in states], cuts, shards)
    sequences: dict[str, int] = {}
    earlier: collections.Counter[int] = collections.Counter()
    for state in states:
        earlier += state.delays.histogram + state.delays.earlier
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
            Delays(version=version, began=version, earlier=earlier if i == 0 else type(earlier)()),
        )
        for i, (params, rule) in enumerate(zip(slices, rules, strict=True))
    ]


@_of_kind.register
def _of_vectors(first: VectorState, states: list[Any], cuts: Cuts, shards: int) -> list[Any]:
    def all_of(named: list[dict[str, Slice]]) -> list[dict[str, Slice]]:
        made = {name: cuts([one[name] for one in named]) for name in named[0]}
        return [{name: slices[i] for name, slices in made.items()} for i in range(shards)]

    last = max(set.intersection(*({f.iteration for f in s.finished} for s in states)))
    finished = [next(f for f in s.finished if f.iteration == last) for s in states]
    vectors = all_of([f.vectors for f in finished])
    return [
        dataclasses.replace(first, vectors=mine, finished=(Finished(last, finished[0].memo, mine),))
        for mine in vectors
    ]


def _rules(rules: list[Any], params: list[Slice], cuts: Cuts, shards: int) -> list[Any]:
    """States of the server rule: what is like the slice is cut as it is, the rest is shared."""

    def is_slice(one: Any) -> bool:
        return isinstance(one, dict) and any(one.keys() == slice_.keys() for slice_ in params)

    flat = [jax.tree.flatten(rule, is_leaf=is_slice) for rule in rules]
    structure = flat[0][1]
    columns = [
        cuts(values) if is_slice(values[0]) else [values[0]] * shards
        for values in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return [jax.tree.unflatten(structure, [column[i] for column in columns]) for i in range(shards)]


def _total(counts: list[Counts], ahead: Counts) -> Counts:
    """Of the shards together: what each counts of its own is added up."""
    summed = {
        name: sum(getattr(c, name) for c in counts)
        for name in ("repeated", "lost", "bytes_fetched", "bytes_pushed")
    }
    return dataclasses.replace(ahead, **summed)


def dealt_anew(states: Sequence[Any], old: int, new: int) -> list[Any]:
    """For another number of replicas: together they go on where the others were together.

    Only of asynchronous ones: others take their steps together, or are told what to do.
    """
    return [
        _dealt(state, new) if old != new and isinstance(state, ShardState) else state
        for state in states
    ]


def _dealt(state: ShardState, replicas: int) -> ShardState:
    pushes = sum(sequence + 1 for sequence in state.sequences.values())
    each = -(-pushes // replicas)
    return dataclasses.replace(state, sequences={f"replica/{r}": each - 1 for r in range(replicas)})
