"""Runs the arithmetic of a timed run, and records what the run leaves, in the order of time."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.parameter_server import Fetched, Report
from dbjax.runtime.trace import Row, Trace
from dbjax.schedules.compiled import Carry, CompiledArithmetic
from dbjax.schedules.timing import Border, Look, Timing
from dbjax.schedules.turns import Turns
from dbjax.task import Task
from dbjax.types import Slices

Evaluate = Callable[[Look, Fetched, list[Report]], object]


class Finished(NamedTuple):
    """The end of a run.

    Attributes:
      timing: the timing of the run; if it was interrupted, up to that moment.
      slices: the final parameters, a slice for each shard.
      reports: the final reports of all shards.
    """

    timing: Timing
    slices: Slices
    reports: list[Report]


class _Seen(NamedTuple):
    """The values at a border.

    Attributes:
      slices: the parameters, a slice for each shard.
      refused: the number of refused pushes of each shard, and of their examples, [S, 2].
    """

    slices: Slices
    refused: Any


@final
class Execution:
    """Runs the arithmetic of a timed run.

    Args:
      task: the task.
      config: the Config of the algorithm.
      timing: the timing of the run.
      trace: the trace that rows are recorded into.
      evaluate: is called for every evaluation but the last, in order with the rows.
    """

    def __init__(
        self, task: Task, config: Any, timing: Timing, trace: Trace, evaluate: Evaluate
    ) -> None:
        self._task, self._config, self._trace, self._evaluate = task, config, trace, evaluate
        self.timing, self._turns = timing, timing.turns()
        self._arithmetic = _arithmetic(task, config, timing, self._turns)
        self._losses = np.full(timing.schedule.gradients, np.nan, np.float32)
        self._known = np.zeros(timing.schedule.gradients, bool)
        self._computed: collections.deque[tuple[Any, jax.Array]] = collections.deque()
        self._seen: collections.deque[tuple[Look, _Seen]] = collections.deque()
        self._recorded = 0  # rows

    def run(
        self, interrupted: Callable[[], bool], up_to: Callable[[float], Timing]
    ) -> Finished:
        """Runs to the end, or to the next border after an interrupt.

        Args:
          interrupted: whether the run is to end.
          up_to: returns the timing of the same run if it ended at that time.
        """
        carry, begin = self._arithmetic.begin(self._task.start()), 0
        for border, end in zip(self.timing.borders, self._turns.ends, strict=False):
            carry = self._compute(carry, begin, end)
            begin = end
            if border.look is not None and border is not self.timing.borders[-1]:
                self._seen.append((border.look, _Seen(*_copied(carry))))
            self._record()
            if border.look is None and interrupted():
                return self._end_early(carry, up_to(border.time_s))
        return self._end(carry, begin)

    def _end_early(self, carry: Carry, timing: Timing) -> Finished:
        """Ends at a border, where the timing ends now."""
        turns = dataclasses.replace(timing.turns(), ring=self._turns.ring)
        index = _indices(timing, self.timing)
        losses, known = self._losses, self._known
        self._drain()
        self.timing, self._turns = timing, turns
        self._losses, self._known = losses[index], known[index]
        self._arithmetic = _arithmetic(self._task, self._config, timing, turns)
        return self._end(self._arithmetic.adopt(carry), int(turns.ends[-2]))

    def _end(self, carry: Carry, begin: int) -> Finished:
        """Computes the gradients that no shard applies, whose losses are recorded all the same."""
        slices, refused = _copied(carry)
        self._compute(carry, begin, int(self._turns.ends[-1]))
        self._drain()
        self._record()
        return Finished(self.timing, slices, _with_refused(self.timing.end.reports, refused))

    def _compute(self, carry: Carry, begin: int, end: int) -> Carry:
        """Runs the turns from `begin` to `end`."""
        planner = self._arithmetic.planner
        while begin < end:
            plan, count = planner.plan(begin, end)
            carry, losses = self._arithmetic.run(carry, plan, count)
            self._computed.append((planner.gradients(begin, count), losses))
            if len(self._computed) > 1:  # the latest chunk is still being computed
                self._look_at(*self._computed.popleft())
            begin += count
        return carry

    def _drain(self) -> None:
        while self._computed:
            self._look_at(*self._computed.popleft())

    def _look_at(self, numbers: Any, losses: jax.Array) -> None:
        there = numbers >= 0
        found = np.asarray(losses)[: len(numbers)][there]
        self._losses[numbers[there]], self._known[numbers[there]] = found, True

    def _record(self) -> None:
        """Records the rows whose losses are known, and the evaluations between them."""
        for row in self._known_rows():
            self._trace.record(row["node"], row["time_s"], _values(row, self._losses))
            self._recorded += 1

    def _known_rows(self) -> Iterator[Row]:
        rows = self.timing.rows
        while True:
            while self._seen and self._seen[0][0].rows == self._recorded:
                look, seen = self._seen.popleft()
                fetched = Fetched(seen.slices, look.versions)
                self._evaluate(look, fetched, _with_refused(look.reports, seen.refused))
            if self._recorded == len(rows):
                return
            row = rows[self._recorded]
            if "loss" in row and not self._known[row["loss"]]:
                return
            yield row


def _arithmetic(task: Task, config: Any, timing: Timing, turns: Turns) -> CompiledArithmetic:
    local = getattr(config, "local_rule", None) or config.rule
    return CompiledArithmetic(task, config.rule, local, timing.schedule, turns, config.replicas)


def _copied(carry: Carry) -> tuple[Slices, Any]:
    """Returns what is to be seen of a carry, which is donated to the next chunk."""
    refused = jnp.stack([state.refused for state in carry.states])
    return jax.tree.map(jnp.copy, carry.params), refused


def _with_refused(reports: list[Report], refused: Any) -> list[Report]:
    """Returns reports that count the refused pushes, of which the timing knows nothing."""
    found = []
    for report, (pushes, examples) in zip(reports, np.asarray(refused).tolist(), strict=True):
        counts = dataclasses.replace(
            report.counts,
            applied=report.counts.applied - pushes,
            refused=pushes,
            examples=report.counts.examples - examples,
        )
        found.append(dataclasses.replace(report, counts=counts))
    return found


def _values(row: Row, losses: Any) -> Row:
    values = {name: value for name, value in row.items() if name not in ("time_s", "node")}
    if "loss" in values:
        values["loss"] = float(losses[values["loss"]])
    return values


def _indices(shorter: Timing, longer: Timing) -> Any:
    """Returns for each gradient of a run its index in the same run when it lasted longer."""
    keys = []
    for timing in (longer, shorter):
        s = timing.schedule
        keys.append(list(zip(s.replica.tolist(), s.life.tolist(), s.step.tolist(), strict=True)))
    where = {key: index for index, key in enumerate(keys[0])}
    return np.array([where[key] for key in keys[1]], np.int64)
