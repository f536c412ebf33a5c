"""Runs the arithmetic of a timed run, and records what the run leaves, in the order of time."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.checkpoint.compiled import CompiledState, DueEvaluation
from dbjax.checkpoint.exact.exact import software_digest
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import AbstractParams, AbstractState, DependsOnValues
from dbjax.runtime.trace import Row, Trace
from dbjax.schedules.compiled import Carry, CompiledArithmetic
from dbjax.schedules.recording import Recorded
from dbjax.schedules.timing import Look, Timing
from dbjax.schedules.turns import turns_of
from dbjax.task import Task
from dbjax.types import Slices

_SHARE = 0.5  # of the free memory: evaluations and checkpoints need copies
Evaluate = Callable[[Look, Fetched, list[Report]], object]
Save = Callable[[float, list[Any], CompiledState], object]


class Finished(NamedTuple):
    """The end of a run.

    Attributes:
      timing: the timing of the run; if it was interrupted, up to that moment.
      slices: the final parameters, a slice for each shard.
      reports: the final reports of all shards.
      checkpoint: the final states of all shards, and the exact state, for the last checkpoint;
        None: there are no checkpoints.
    """

    timing: Timing
    slices: Slices
    reports: list[Report]
    checkpoint: tuple[list[Any], CompiledState] | None


class Observers(NamedTuple):
    """Who looks at a run.

    Attributes:
      evaluate: is called for every evaluation but the last, in order with the rows.
      save: is called for every checkpoint with its time, the states of the shards, and the exact
        state; None: there are no checkpoints.
      interrupted: whether the run is to end.
      up_to: returns the timing of the same run if it ended at that time.
    """

    evaluate: Evaluate
    save: Save | None
    interrupted: Callable[[], bool]
    up_to: Callable[[float], Timing]


@final
class Execution:
    """Runs the arithmetic of a timed run.

    Args:
      task: the task.
      timing: the timing of the run.
      trace: the trace that rows are recorded into.
      observers: who looks at the run.
    """

    def __init__(self, task: Task, timing: Timing, trace: Trace, observers: Observers) -> None:
        self._task, self._trace = task, trace
        self._observers, self._turns = observers, timing.turns()
        self.timing = timing
        self._arithmetic = CompiledArithmetic(task, timing.recorded, self._turns)
        self._require_memory()
        self._losses = np.full(timing.schedule.gradients, np.nan, np.float32)
        self._known = np.zeros(timing.schedule.gradients, bool)
        self._computed: collections.deque[tuple[Any, jax.Array]] = collections.deque()
        self._due: collections.deque[tuple[Look, DueEvaluation]] = collections.deque()
        self._coming: collections.deque[Look] = collections.deque()  # evaluations after this
        self._recorded, self._evaluated_s = 0, -1.0

    @property
    def nbytes(self) -> int:
        """The size of what the program keeps from turn to turn, in bytes."""
        return self._arithmetic.nbytes

    def _require_memory(self) -> None:
        """Raises DependsOnValues if old versions of the parameters do not fit into memory."""
        free = free_bytes()
        if self.nbytes > free * _SHARE:
            rings = ", ".join(f"{size:,}" for size in sorted(set(self._turns.ring)))
            raise DependsOnValues(
                f"{rings} versions of the parameters must be kept, {self.nbytes / 1e9:.3g} GB, and "
                f"{free / 1e9:.3g} GB are free"
            )

    def run(self) -> Finished:
        """Runs to the end, or to the next border after an interrupt."""
        carry = self._arithmetic.begin(self._task.start())
        return self._run(carry, 0)

    def resume(self, state: CompiledState, border: int) -> Finished:
        """Runs from a saved state on.

        Args:
          state: the state, of the same program.
          border: the number of the border at which it was saved.
        """
        self._recorded, self._evaluated_s = state.recorded, state.evaluated_s
        carry = self._arithmetic.load(state, int(self._turns.ends[border]))
        where = {key: index for index, key in enumerate(_keys(self.timing))}
        for replica, life, step, loss in state.losses:
            index = where[replica, life, step]
            self._losses[index], self._known[index] = loss, True
        due = {one.time_s: one for one in state.due}
        for look in (border.look for border in self.timing.borders[:border]):
            if look is None or look.states is not None:
                continue
            if look.time_s in due:
                self._due.append((look, due[look.time_s]))
            elif look.time_s > state.evaluated_s and self._arithmetic.has(
                look.versions, state.versions
            ):
                slices = self._arithmetic.slices(carry, look.versions)
                self._due.append((look, DueEvaluation(look.time_s, slices, _copied(carry)[1])))
                self._evaluated_s = look.time_s
        return self._run(carry, border + 1)

    def _losses_ahead(self) -> Iterator[tuple[int, int, int, float]]:
        """Returns the known losses whose rows come later."""
        rows, ahead = self.timing.rows[: self._recorded], self._known.copy()
        ahead[[row["loss"] for row in rows if "loss" in row]] = False
        keys = _keys(self.timing)
        for index in np.flatnonzero(ahead):
            yield *keys[index], float(self._losses[index])

    def _run(self, carry: Carry, first: int) -> Finished:
        """Runs from a border on."""
        looks = (border.look for border in self.timing.borders[first:-1])
        self._coming.extend(look for look in looks if look is not None and look.states is None)
        begin = int(self._turns.ends[first - 1]) if first else 0
        last = len(self.timing.borders) - 1
        for number in range(first, last + 1):
            border, end = self.timing.borders[number], int(self._turns.ends[number])
            carry = self._compute(carry, begin, end)
            begin = end
            if border.look is not None and number < last:
                self._look(carry, border.look, end)
            self._record()
            if border.look is None and self._observers.interrupted():
                return self._end_early(carry, self._observers.up_to(border.time_s))
        return self._end(carry, begin)

    def _look(self, carry: Carry, look: Look, turns: int) -> None:
        """Keeps what an evaluation needs, or saves a checkpoint."""
        if look.states is not None:
            self._save(carry, look, turns)
        else:
            self._evaluated_s = look.time_s
            self._coming.popleft()
            self._due.append((look, DueEvaluation(look.time_s, *_copied(carry))))

    def _save(self, carry: Carry, look: Look, turns: int) -> None:
        if self._observers.save is None:
            return
        self._drain()
        self._record()
        state = self._state(carry, look, turns)
        self._observers.save(look.time_s, _states(look, state), state)

    def _state(self, carry: Carry, look: Look, turns: int) -> CompiledState:
        return CompiledState(
            program_digest(self.timing, look.versions),
            look.versions,
            self._recorded,
            tuple(self._losses_ahead()),
            self._evaluated_s,
            tuple(due for _, due in self._due),
            **self._arithmetic.save(carry, turns, look.versions),
        )

    def _end_early(self, carry: Carry, timing: Timing) -> Finished:
        """Ends at a border, where the timing ends now."""
        turns = dataclasses.replace(timing.turns(), ring=self._turns.ring)
        index = _indices(timing, self.timing)
        self._drain()
        self._coming.clear()
        self._losses, self._known = self._losses[index], self._known[index]
        self.timing, self._turns = timing, turns
        self._arithmetic = CompiledArithmetic(self._task, timing.recorded, turns)
        return self._end(self._arithmetic.adopt(carry), int(turns.ends[-2]))

    def _end(self, carry: Carry, begin: int) -> Finished:
        """Computes the gradients that no shard applies, whose losses are recorded all the same."""
        end, (slices, refused) = self.timing.end, _copied(carry)
        saves = self._observers.save is not None
        state = self._state(carry, end, begin) if saves else None
        self._compute(carry, begin, int(self._turns.ends[-1]))
        self._drain()
        self._record()
        reports = _with_refused(end.reports, refused)
        checkpoint = None
        if state is not None:
            ahead = tuple(self._losses_ahead())
            exact = dataclasses.replace(state, recorded=self._recorded, losses=ahead, due=())
            checkpoint = _states(end, exact), exact
        return Finished(self.timing, slices, reports, checkpoint)

    def _compute(self, carry: Carry, begin: int, end: int) -> Carry:
        """Runs the turns from `begin` to `end`."""
        planner = self._arithmetic.planner
        while begin < end:
            plan, count = planner.plan(begin, end)
            carry, losses = self._arithmetic.run(carry, plan, count)
            self._computed.append((planner.gradients(begin, count), losses))
            if len(self._computed) > 1:  # the latest chunk is still being computed
                self._take(*self._computed.popleft())
            begin += count
        return carry

    def _drain(self) -> None:
        while self._computed:
            self._take(*self._computed.popleft())

    def _take(self, numbers: Any, losses: jax.Array) -> None:
        """Waits for the losses of a chunk."""
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
            while self._due and self._due[0][0].rows == self._recorded:
                look, due = self._due.popleft()
                reports = _with_refused(look.reports, due.refused)
                self._observers.evaluate(look, Fetched(due.slices, look.versions), reports)
            if self._recorded == len(rows) or (
                self._coming and self._coming[0].rows == self._recorded
            ):
                return
            row = rows[self._recorded]
            if "loss" in row and not self._known[row["loss"]]:
                return
            yield row


def free_bytes() -> int:
    """Returns how much memory of jax's first device is free, in bytes."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device:
        return int(of_device["bytes_limit"] - of_device["bytes_in_use"])
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def run_recorded(task: Task, recorded: Recorded) -> Slices:
    """Does recorded arithmetic.

    Args:
      task: the task, with a seed.
      recorded: the recorded arithmetic.

    Returns:
      The final parameters, a slice for each shard.
    """
    turns = turns_of(recorded.schedule)
    arithmetic = CompiledArithmetic(task, recorded, turns)
    carry, begin, end = arithmetic.begin(task.start()), 0, int(turns.ends[0])
    while begin < end:
        plan, count = arithmetic.planner.plan(begin, end)
        carry, _ = arithmetic.run(carry, plan, count)
        begin += count
    return carry.params


def program_digest(timing: Timing, versions: tuple[int, ...]) -> str:
    """Returns what the exact state of a compiled run depends on, as a digest in hexadecimal.

    Args:
      timing: the timing of the run.
      versions: the versions of the shards at that moment; what comes later does not matter.
    """
    found = f"{timing.schedule.digest_until(versions)} {software_digest()}"
    return hashlib.sha256(found.encode()).hexdigest()


def _copied(carry: Carry) -> tuple[Slices, Any]:
    """Returns what is to be seen of a carry, which is donated to the next chunk."""
    refused = jnp.stack([state.refused for state in carry.states])
    return jax.tree.map(jnp.copy, carry.params), refused


def _states(look: Look, exact: CompiledState) -> list[Any]:
    """Returns the states of all shards, with their values."""
    assert look.states is not None
    return [
        _with_values(*of_shard)
        for of_shard in zip(look.states, exact.params, exact.rules, strict=True)
    ]


def _with_values(state: Any, params: Any, rule: Any) -> Any:
    """Returns the state of a shard with values for its parameters and for its rule's state."""
    if isinstance(state, AbstractParams):
        return params
    if isinstance(state, AbstractState):
        return rule
    if isinstance(state, tuple) and hasattr(state, "_make"):
        return state._make(_with_values(part, params, rule) for part in state)
    if not dataclasses.is_dataclass(state) or isinstance(state, type):
        return state
    values = {
        field.name: _with_values(getattr(state, field.name), params, rule)
        for field in dataclasses.fields(state)
        if field.init
    }
    return dataclasses.replace(state, **values)


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


def _keys(timing: Timing) -> list[tuple[int, int, int]]:
    """Returns the replica, its life and the step of each gradient, which together are unique."""
    of = timing.schedule
    return list(zip(of.replica.tolist(), of.life.tolist(), of.step.tolist(), strict=True))


def _indices(shorter: Timing, longer: Timing) -> Any:
    """Returns for each gradient of a run its index in the same run when it lasted longer."""
    where = {key: index for index, key in enumerate(_keys(longer))}
    return np.array([where[key] for key in _keys(shorter)], np.int64)
