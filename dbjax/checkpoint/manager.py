"""Takes checkpoints of a run, at intervals and at its end."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable
from typing import Any, final

from dbjax.arguments import require_fields, require_positive
from dbjax.checkpoint.compiled import CompiledState
from dbjax.checkpoint.encoding import ArrayTable
from dbjax.checkpoint.exact import ExactResume, ExactState
from dbjax.checkpoint.files import Checkpoints
from dbjax.checkpoint.state import CheckpointState, RunSignature, rows_to_keep
from dbjax.program import Program
from dbjax.runtime.interface import Node, Runtime, SavedState, current
from dbjax.runtime.trace import Row, Trace

_LOG = logging.getLogger("dbjax")


@dataclasses.dataclass(frozen=True)
class Every:
    """The interval between two checkpoints; the limit that is reached first counts.

    Attributes:
      seconds: the interval in seconds on the run's clock; None: no limit.
      updates: the interval in versions of the slowest shard; None: no limit.

    Raises:
      ValueError: a value is not positive.
    """

    seconds: float | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        require_fields("Every", self)
        for name in ("seconds", "updates"):
            value = getattr(self, name)
            if value is not None:
                require_positive(f"checkpoints every {name}", value, ", or None")


@final
class CheckpointManager:
    """Takes the checkpoints of one run.

    Args:
      program: the program of the run.
      runtime: the runtime that the program is placed on.
      described: the signature of the run, see `run_signature`.
      replicas: the number of replicas of the run.
      incarnation: how many times the run was resumed before, not counting exact resumptions.
      checkpoints: where the checkpoints are written; None: they stay in memory, for shards that
        fail and come back.
      trace: the trace of the run.

    Attributes:
      exactly: saves the exact state of a virtual run, too; None: only the shards' state is saved.
    """

    def __init__(
        self,
        program: Program,
        runtime: Runtime,
        described: RunSignature,
        replicas: int,
        incarnation: int,
        checkpoints: Checkpoints | None,
        trace: Trace,
    ) -> None:
        self._program, self._runtime, self._described = program, runtime, described
        self._replicas, self._incarnation, self._checkpoints = replicas, incarnation, checkpoints
        self._trace = trace
        self.exactly: ExactResume | None = None

    def take(self, time_s: float, states: list[Any]) -> None:
        """Saves the states of the shards at this moment."""
        content = self._content(states, time_s)
        if self._checkpoints is not None and self.exactly is None:
            self._checkpoints.save(content, self._arrays())
        elif self._checkpoints is not None:
            self._runtime.between_events(functools.partial(self._save, content))

    def save_compiled(self, time_s: float, states: list[Any], exact: CompiledState) -> None:
        """Saves a compiled run, with its exact state."""
        if self._checkpoints is not None:
            content = dataclasses.replace(self._content(states, time_s), compiled=exact)
            self._checkpoints.save(content, self._arrays())

    def save_final(self, time_s: float, look: Callable[[], object]) -> None:
        """Takes the last checkpoint after the end of the run, and waits until all are on disk.

        Nodes that are down are revived, so that they can be asked for their state; the exact state
        of the run is taken before that.

        Args:
          time_s: the time at which the run ended, in seconds on its clock.
          look: reports what went wrong in the run, so that the checkpoint records that it was
            reported.
        """
        arrays = self._arrays()
        exact = None if self._checkpoints is None else self._exact(arrays)
        self._runtime.revive()
        if self._checkpoints is not None:
            look()
            states = self._program.server.broadcast(self._program.shard.checkpoint).result()
            content = dataclasses.replace(self._content(states, time_s), exact=exact)
            self._checkpoints.save(content, arrays)
            self._checkpoints.wait()

    def _arrays(self) -> ArrayTable:
        return ArrayTable(self._described.structures)

    def _content(self, states: list[Any], time_s: float) -> CheckpointState:
        return CheckpointState(
            self._described.about,
            self._replicas,
            self._program.server.partition.shards,
            tuple(states),
            self._incarnation,
            time_s,
            self._rows(),
        )

    def _rows(self) -> tuple[Row, ...]:
        return rows_to_keep(self._trace.rows, self._program.recent_losses)

    def _save(self, content: CheckpointState) -> None:
        """Saves a checkpoint with the exact state, between two events of a virtual run."""
        assert self._checkpoints is not None
        arrays = self._arrays()
        exact = self._exact(arrays)
        self._checkpoints.save(dataclasses.replace(content, exact=exact, rows=self._rows()), arrays)

    def _exact(self, arrays: ArrayTable) -> ExactState | None:
        if self.exactly is None:
            return None
        try:
            return self.exactly.take(arrays)
        except TypeError as error:
            _LOG.warning("this run cannot be resumed exactly, only from its shards: %s", error)
            self.exactly = None
            return None


async def checkpointer(
    node: Node,
    runtime: Runtime,
    program: Program,
    every: Every,
    take: Callable[[float, list[Any]], object],
) -> None:
    """Takes checkpoints while a run continues; this costs no time of the cluster.

    This is an observer (`Runtime.observe`).

    Args:
      node: the node of the observer.
      runtime: the runtime, where shards that have failed find the latest states.
      program: the program that runs.
      every: the interval between two checkpoints.
      take: is called with the time and the states of all shards.
    """
    seconds = math.inf if every.seconds is None else every.seconds
    taken_s, updates = node.saved_progress() or (node.now(), await _updates(program))
    while True:
        node.save_progress((taken_s, updates))
        due_s = taken_s + seconds
        if every.updates is None:
            await node.sleep(max(0.0, due_s - node.now()))
        else:
            await _wait(node, program, due_s, updates + every.updates)
        taken_s, updates = max(due_s, node.now()), await _updates(program)
        calls = itertools.count(current.caller.calls + 1)  # the numbers of the next calls
        states = await program.server.broadcast(program.shard.checkpoint)
        runtime.latest_states = {
            shard.name: SavedState(state, next(calls))
            for shard, state in zip(program.server.shards, states, strict=True)
        }
        take(node.now(), states)


async def _updates(program: Program) -> int:
    reports = await program.server.broadcast(program.shard.report)
    return min(report.version for report in reports)


async def _wait(node: Node, program: Program, due_s: float, updates: int) -> None:
    """Waits until `due_s`, or until every shard has applied `updates` updates.

    It polls more often as the number of updates approaches the limit: each time it waits for
    half the expected remaining time. This is at least half the time of an update; otherwise
    the polls before the last update would become ever more frequent, without end.
    """
    begin_s, before, step_s = node.now(), await _updates(program), 1e-3
    now = before
    while now < updates and node.now() < due_s:
        await node.sleep(min(step_s, max(0.0, due_s - node.now())))
        now = await _updates(program)
        each_s = (node.now() - begin_s) / max(1, now - before)
        step_s = min(2 * step_s, (updates - now) / 2 * each_s)
