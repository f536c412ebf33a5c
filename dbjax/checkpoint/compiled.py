"""The exact state of a compiled run (`dbjax.schedules`), as a checkpoint holds it."""

from __future__ import annotations

import dataclasses
from typing import Any

from dbjax.types import Slices


@dataclasses.dataclass(frozen=True)
class PendingPush:
    """A push that some shards have not applied yet.

    Attributes:
      replica: the number of the replica that computed its first gradient.
      life: how often the replica's node had come back after a failure.
      step: the number of its mini-batch.
      gradient: its gradient, a slice for each shard.
    """

    replica: int
    life: int
    step: int
    gradient: Slices


@dataclasses.dataclass(frozen=True)
class DueEvaluation:
    """An evaluation that waits for the losses that were recorded before it.

    Attributes:
      time_s: its time, in seconds on the run's clock.
      slices: the parameters, a slice for each shard.
      refused: the number of refused pushes of each shard, and of their examples, [S, 2].
    """

    time_s: float
    slices: Slices
    refused: Any


@dataclasses.dataclass(frozen=True)
class CompiledState:
    """The exact state of a compiled run at a moment, besides the states of the shards.

    Attributes:
      program: a digest of the timing of the run so far, and of the software it depends on.
      versions: the version of each shard.
      recorded: the number of rows that have been recorded.
      losses: the losses of gradients that have been computed and whose rows come later: the
        numbers of the replica, its life and the step, and the loss.
      evaluated_s: the time of the last evaluation so far; -1: there was none.
      due: evaluations up to then that wait for losses.
      params: the parameters, a slice for each shard.
      rules: the states of the shards' rules.
      ring: the latest versions of each slice, the oldest first, arrays [versions, ...].
      pending: the pushes that some shards have not applied yet.
      own: the replicas' own parameters, arrays [replicas, ...]; None: they have none.
      local: the states of the replicas' local rule, arrays [replicas, ...]; None: there are none.
    """

    program: str
    versions: tuple[int, ...]
    recorded: int
    losses: tuple[tuple[int, int, int, float], ...]
    evaluated_s: float
    due: tuple[DueEvaluation, ...]
    params: Slices
    rules: tuple[Any, ...]
    ring: Slices
    pending: tuple[PendingPush, ...]
    own: Slices | None
    local: Any
