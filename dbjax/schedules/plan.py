"""What a compiled run does in each turn, as arrays that its program reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.data.examples import ArrayExamples
from dbjax.data.stream import Stream
from dbjax.schedules.schedule import Ints, Schedule
from dbjax.schedules.turns import Turns, rounded
from dbjax.task import Task
from dbjax.types import Keyed

_TURNS = 1024  # in a chunk
_INDEX_BYTES = 16 * 2**20  # of the indices that are found at once
_CHUNK_BYTES = 64 * 2**20  # of mini-batches that the program cannot gather itself


class Plan(NamedTuple):
    """What the program does in each of a number of turns, as arrays [turns, ...].

    There are at most n gradients in a push, and S shards.

    Attributes:
      batch: the mini-batches, or the indices of their examples, [turns, n, ...].
      read: the place in the ring of each slice that a gradient is computed at, [turns, n, S].
      computes: whether there is such a gradient, [turns, n].
      replica: the number of the replica, [turns].
      own: whether the gradient is computed at the replica's own parameters, [turns, n].
      stepped: whether the replica takes a local step with it, [turns, n].
      fresh: whether that is the first local step of the replica's incarnation, [turns, n].
      keep: the place where the push waits until all shards have applied it, [turns].
      take: the place of the push that each shard applies, [turns, S].
      applies: whether the shard applies one, [turns, S].
      write: the place in the ring of the version that it makes, [turns, S].
      examples: the number of examples in that push, [turns, S].
    """

    batch: Any
    read: Any
    computes: Any
    replica: Any
    own: Any
    stepped: Any
    fresh: Any
    keep: Any
    take: Any
    applies: Any
    write: Any
    examples: Any


@final
class Planner:
    """Plans the turns of a schedule, chunk by chunk.

    Args:
      task: the task that is trained.
      schedule: the schedule.
      turns: its turns.
      replicas: the number of replicas among which the data is divided.
      data: the examples of another planner of the same task; None: they are put on the device.

    Attributes:
      size: the largest number of gradients in a push, n.
      data: the examples, from which the program gathers mini-batches by their indices; None: it is
        given the mini-batches themselves.
      chunk: the number of turns in a chunk.
    """

    def __init__(
        self, task: Task, schedule: Schedule, turns: Turns, replicas: int, data: Any = None
    ) -> None:
        self._streams = [task.batches(r, replicas) for r in range(replicas)]
        self._examples, self._keyed = task.examples, task.takes_key
        self._batch_size, self._seed = task.batch_size, task.seed or 0
        self._schedule = schedule
        self.size = int(np.diff(schedule.first).max(initial=1))
        self.data = data
        if data is None and isinstance(task.examples, ArrayExamples):
            self.data = jax.tree.map(jnp.asarray, task.examples.tree)
        self.chunk = max(1, min(_TURNS, rounded(len(turns)), self._most_turns()))
        self._number = self._all_gradients(turns)
        every = self._all_turns(turns)
        self._every = jax.tree.map(lambda a: _extended(a, self.chunk), every)
        self._rows, self._rows_begin = np.empty((0, 0), np.int32), 0

    def plan(self, begin: int, end: int) -> tuple[Plan, int]:
        """Returns the plan of a chunk, and how many of its turns there are.

        Args:
          begin: the first turn of the chunk.
          end: the turn before which it ends at the latest.
        """
        count = min(self.chunk, end - begin)
        plan = jax.tree.map(lambda a: a[begin : begin + self.chunk], self._every)
        return plan._replace(batch=self._batches(begin, count)), count

    def gradients(self, begin: int, count: int) -> Ints:
        """Returns the index of each gradient of some turns, or -1, [turns, n]."""
        return self._number[begin : begin + count]

    def _most_turns(self) -> int:
        if self.data is not None:
            return _TURNS
        batch = self._examples.gather(np.zeros(self._batch_size, np.int64))
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch)) * self.size
        return _CHUNK_BYTES // max(1, size)

    def _all_gradients(self, turns: Turns) -> Ints:
        """Returns the index of each gradient of the push of each turn, or -1, [T, n]."""
        first = self._schedule.first
        places = np.arange(self.size)
        count = np.diff(first)
        of_push = np.where(places < count[:, None], first[:-1, None] + places, -1)
        none = np.full((1, self.size), -1)
        return np.concatenate([of_push, none])[turns.computes]  # -1 is the last row

    def _all_turns(self, turns: Turns) -> Plan:
        """Returns the plan of all turns, without mini-batches."""
        schedule, number = self._schedule, self._number
        before, ring = turns.versions()[:-1], np.array(turns.ring)
        slots = max(1, turns.pending)
        push_slot = turns.computed % slots
        pushes = np.maximum(turns.applies, 0)
        examples = np.diff(schedule.first) * self._batch_size
        at = np.maximum(number, 0)
        return Plan(
            batch=np.zeros(len(turns), np.int32),
            read=(schedule.version[at] % ring).astype(np.int32),
            computes=number >= 0,
            replica=schedule.replica[at[:, 0]],
            own=schedule.own[at] & (number >= 0),
            stepped=schedule.stepped[at] & (number >= 0),
            fresh=_first_steps(schedule)[at] & (number >= 0),
            keep=(np.arange(len(turns)) % slots).astype(np.int32),
            take=push_slot[pushes].astype(np.int32),
            applies=turns.applies >= 0,
            write=((before + 1) % ring).astype(np.int32),
            examples=examples[pushes].astype(np.int32),
        )

    def _batches(self, begin: int, count: int) -> Any:
        """Returns the mini-batches of gradients, or the indices of their examples."""
        if self.data is None:
            number = self._number[begin : begin + count]
            replica, step = self._of(number)
            gathered = [self._examples.gather(mine) for mine in self._indices(replica, step)]
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *gathered)
            shaped = jax.tree.map(lambda a: a.reshape(*number.shape, *a.shape[1:]), batch)
            batch = jax.tree.map(lambda a: _extended(a, self.chunk - count), shaped)
        else:
            batch = self._indices_from(begin)
        if not self._keyed:
            return batch
        number = _extended(self._number[begin : begin + self.chunk], self.chunk)[: self.chunk]
        replica, step = self._of(number)
        numbers = np.stack([np.full_like(replica, self._seed), replica, step], axis=1)
        return Keyed(batch, numbers.astype(np.uint32).reshape(*number.shape, 3))

    def _indices_from(self, begin: int) -> Any:
        """Returns the indices of the examples of a chunk's mini-batches, [turns, n, batch size].

        Those of many chunks are found at once, since evaluations may cut a run into short ones.
        """
        at = begin - self._rows_begin
        if at < 0 or at + self.chunk > len(self._rows):
            turns = _INDEX_BYTES // (4 * self.size * self._batch_size)
            number = self._number[begin : begin + max(self.chunk, turns)]
            rows = self._indices(*self._of(number)).astype(np.int32)
            rows = rows.reshape(*number.shape, self._batch_size)
            self._rows, self._rows_begin, at = _extended(rows, self.chunk), begin, 0
        return self._rows[at : at + self.chunk]

    def _of(self, number: Ints) -> tuple[Any, Any]:
        """Returns the replicas and the steps of gradients."""
        at = np.maximum(number, 0).reshape(-1)
        return self._schedule.replica[at], self._schedule.step[at].astype(np.int64)

    def _indices(self, replica: Any, step: Any) -> Any:
        return indices_of(self._streams, replica, step)


def _extended(array: Any, more: int) -> Any:
    """Returns an array with so many more rows of zeros."""
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])


def indices_of(streams: Sequence[Stream], replica: Any, step: Any) -> Any:
    """Returns the indices of the examples of mini-batches.

    Args:
      streams: the mini-batches of each replica.
      replica: the numbers of the replicas, int [batches].
      step: the numbers of the steps, int64 [batches].

    Returns:
      int64 [batches, batch size].
    """
    found = np.empty((len(replica), streams[0].batch_size), np.int64)
    order = np.argsort(replica, kind="stable")
    ends = np.flatnonzero(np.diff(replica[order])) + 1
    for mine in np.split(order, ends):
        found[mine] = streams[replica[mine[0]]].indices(step[mine])
    return found


def _first_steps(schedule: Schedule) -> Any:
    """Returns whether a gradient makes the first local step of its replica's incarnation, [K]."""
    stepped = np.flatnonzero(schedule.stepped)
    lives = np.stack([schedule.replica[stepped], schedule.life[stepped]], axis=1)
    _, first = np.unique(lives, axis=0, return_index=True)  # indices of first appearances
    found = np.zeros(schedule.gradients, bool)
    found[stepped[first]] = True
    return found
