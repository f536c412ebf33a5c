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
from dbjax.schedules.plan import Planner
from dbjax.schedules.recording import Recorded
from dbjax.schedules.timing import Look, Timing
from dbjax.schedules.turns import Turns, turns_of
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
      nbytes: the size of what the program kept from turn to turn, in bytes.
    """

    timing: Timing
    slices: Slices
    reports: list[Report]
    checkpoint: tuple[list[Any], CompiledState] | None
    nbytes: int


class Observers(NamedTuple):
    """Who looks at a run.

    Attributes:
      evaluate: is called for every evaluation but the last, in order with the rows.
      save: is called for every checkpoint with its time, the states of the shards, and the exact
        state; None: there are no checkpoints.
      interrupted: whether the run is to end at the next pause.
      stopped: whether it is to end at the evaluation that was recorded last; if there are
        checkpoints, at the next pause.
      until: returns the timing of the run if it ended at that pause.
    """

    evaluate: Evaluate
    save: Save | None
    interrupted: Callable[[], bool]
    stopped: Callable[[], bool]
    until: Callable[[Look], Timing]


@final
class Execution:
    """Runs the arithmetic of a timed run.

    Args:
      task: the task.
      timing: the timing of the run, or of a part of it.
      trace: the trace that rows are recorded into.
      observers: who looks at the run.
      state: the exact state of the run to begin with; None: the run begins.
      border: the number of the border in the timing at which the state was saved.
      data: the examples, where they are used (`Planner.data`); None: they are put there.
      held: how much memory the caller will free, in bytes.

    Attributes:
      timing: the timing; after an interrupt, up to where the run has ended.

    Raises:
      DependsOnValues: the state is not one of this run, or old versions of the parameters do not
        fit into memory.
    """

    def __init__(
        self,
        task: Task,
        timing: Timing,
        trace: Trace,
        observers: Observers,
        state: CompiledState | None = None,
        border: int = 0,
        data: Any = None,
        held: int = 0,
    ) -> None:
        self._task, self._trace = task, trace
        self._observers, self._turns = observers, timing.turns
        self.timing = timing
        self._arithmetic = _arithmetic(task, timing, self._turns, data)
        self._require_memory(held)
        self._losses = np.full(timing.schedule.gradients, np.nan, np.float32)
        self._known = np.zeros(timing.schedule.gradients, bool)
        self._computed: collections.deque[tuple[Any, jax.Array]] = collections.deque()
        self._due: collections.deque[tuple[Look, DueEvaluation]] = collections.deque()
        self._coming: collections.deque[Look] = collections.deque()  # evaluations after this
        self._recorded, self._evaluated_s = 0, -1.0
        self._next, self._turn = 0, 0  # the next border, and the next turn
        self._ended: tuple[Look, DueEvaluation] | None = None  # where `stopped` made the run end
        if state is None:
            self._carry = self._arithmetic.begin(task.start())
        else:
            self._carry = self._resume(state, border)
        looks = (one.look for one in timing.borders[self._next : -1])
        self._coming.extend(look for look in looks if look and look.why == "evaluation")

    def _require_memory(self, held: int) -> None:
        """Raises DependsOnValues if old versions of the parameters do not fit into memory."""
        free, nbytes = free_bytes() + held, self._arithmetic.nbytes
        if nbytes > free * _SHARE:
            rings = ", ".join(f"{size:,}" for size in sorted(set(self._turns.ring)))
            raise DependsOnValues(
                f"{rings} versions of the parameters must be kept, {nbytes / 1e9:.3g} GB, and "
                f"{free / 1e9:.3g} GB are free"
            )

    def _resume(self, state: CompiledState, border: int) -> Carry:
        """Puts everything back as it was at a border, and returns the carry."""
        self._recorded, self._evaluated_s = state.recorded, state.evaluated_s
        self._next, self._turn = border + 1, int(self._turns.ends[border])
        carry = self._arithmetic.load(state, self._turn)
        where = {key: index for index, key in enumerate(self._keys())} if state.losses else {}
        for replica, life, step, loss in state.losses:
            index = where[replica, life, step]
            self._losses[index], self._known[index] = loss, True
        due = {one.time_s: one for one in state.due}
        for look in (border.look for border in self.timing.borders[: self._next]):
            if look is None or look.why != "evaluation":
                continue
            if look.time_s in due:
                self._due.append((look, due[look.time_s]))
            elif look.time_s > state.evaluated_s and self._arithmetic.has(
                look.versions, state.versions
            ):
                slices = self._arithmetic.slices(carry, look.versions)
                self._due.append((look, DueEvaluation(look.time_s, slices, _copied(carry)[1])))
                self._evaluated_s = look.time_s
        return carry

    def run(self) -> None:
        """Runs to the end of the timing, to the next pause after an interrupt, or until stopped."""
        last = len(self.timing.borders) - 1
        for number in range(self._next, last + 1):
            look = self.timing.borders[number].look
            self._compute(int(self._turns.ends[number]))
            if look is not None and number < last:
                self._look(look)
            self._record()
            if self._ended is not None:
                return
            if look and look.why == "pause" and number < last and self._ends_at_pauses():
                self._shorten(self._observers.until(look))
                return
        self._drain()
        self._record()

    def longer(self, timing: Timing) -> Execution:
        """Returns the execution of a longer timing of the same run, which goes on from here.

        This one has ended then.
        """
        look = self.timing.end
        border = next(i for i, border in enumerate(timing.borders) if border.look is look)
        state, arithmetic = self._state(look), self._arithmetic
        del self._carry
        return Execution(
            self._task,
            timing,
            self._trace,
            self._observers,
            state,
            border,
            arithmetic.planner.data,
            arithmetic.nbytes,
        )

    def end(self) -> Finished:
        """Ends the run at the end of the timing.

        Gradients that no shard applies are computed too, since their losses are recorded.
        """
        if self._ended is not None:
            look, due = self._ended
            timing, reports = self._observers.until(look), _with_refused(look.reports, due.refused)
            return Finished(timing, due.slices, reports, None, self._arithmetic.nbytes)
        end, (slices, refused) = self.timing.end, _copied(self._carry)
        saves = self._observers.save is not None
        state = self._state(end) if saves else None
        self._compute(int(self._turns.ends[-1]))
        self._drain()
        self._record()
        if self._ended is not None:
            return self.end()
        reports = _with_refused(end.reports, refused)
        checkpoint = None
        if state is not None:
            ahead = tuple(self._losses_ahead())
            exact = dataclasses.replace(state, recorded=self._recorded, losses=ahead, due=())
            checkpoint = _states(end, exact), exact
        return Finished(self.timing, slices, reports, checkpoint, self._arithmetic.nbytes)

    def _ends_at_pauses(self) -> bool:
        return self._observers.interrupted() or self._observers.stopped()

    def _look(self, look: Look) -> None:
        """Keeps what an evaluation needs, or saves a checkpoint."""
        if look.why == "checkpoint":
            self._save(look)
        elif look.why == "evaluation":
            self._evaluated_s = look.time_s
            self._coming.popleft()
            self._due.append((look, DueEvaluation(look.time_s, *_copied(self._carry))))

    def _save(self, look: Look) -> None:
        if self._observers.save is None:
            return
        self._drain()
        self._record()
        state = self._state(look)
        self._observers.save(look.time_s, _states(look, state), state)

    def _state(self, look: Look) -> CompiledState:
        return CompiledState(
            program_digest(self.timing, look.versions),
            look.versions,
            self._recorded,
            tuple(self._losses_ahead()),
            self._evaluated_s,
            tuple(due for _, due in self._due),
            **self._arithmetic.save(self._carry, self._turn, look.versions),
        )

    def _shorten(self, timing: Timing) -> None:
        """Makes the run end here, at the end of this timing."""
        turns = dataclasses.replace(timing.turns, ring=self._turns.ring)
        index = np.empty(timing.schedule.gradients, np.int64)
        mine = timing.recorded.indices
        index[mine] = self.timing.recorded.indices[: len(mine)]
        self._drain()
        self._coming.clear()
        self._losses, self._known = self._losses[index], self._known[index]
        self.timing, self._turns, self._turn = timing, turns, int(turns.ends[-2])
        self._arithmetic = _arithmetic(self._task, timing, turns, self._arithmetic.planner.data)
        self._carry = self._arithmetic.adopt(self._carry)

    def _losses_ahead(self) -> Iterator[tuple[int, int, int, float]]:
        """Returns the known losses whose rows come later."""
        ahead = self._known.copy()
        for row in self.timing.rows[: self._recorded]:
            index = self.timing.gradient(row)
            if index is not None:
                ahead[index] = False
        if not ahead.any():
            return
        keys = self._keys()
        for known in np.flatnonzero(ahead).tolist():
            yield *keys[known], float(self._losses[known])

    def _keys(self) -> list[tuple[int, int, int]]:
        """Returns the replica, its life and the step of each gradient: no two have the same."""
        of = self.timing.schedule
        return list(zip(of.replica.tolist(), of.life.tolist(), of.step.tolist(), strict=True))

    def _compute(self, end: int) -> None:
        """Runs the turns up to `end`."""
        planner = self._arithmetic.planner
        while self._turn < end:
            plan, count = planner.plan(self._turn, end)
            self._carry, losses = self._arithmetic.run(self._carry, plan, count)
            self._computed.append((planner.gradients(self._turn, count), losses))
            if len(self._computed) > 1:  # the latest chunk is still being computed
                self._take(*self._computed.popleft())
            self._turn += count

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
        for row, index in self._known_rows():
            values = {name: row[name] for name in row if name not in ("time_s", "node")}
            if index is not None:
                values["loss"] = float(self._losses[index])
            self._trace.record(row["node"], row["time_s"], values)
            self._recorded += 1

    def _known_rows(self) -> Iterator[tuple[Row, int | None]]:
        """Yields rows with the index of the gradient whose loss they hold."""
        rows = self.timing.rows
        while True:
            while self._due and self._due[0][0].rows == self._recorded and not self._ended:
                look, due = self._due.popleft()
                reports = _with_refused(look.reports, due.refused)
                self._observers.evaluate(look, Fetched(due.slices, look.versions), reports)
                if self._observers.stopped() and self._observers.save is None:
                    self._ended = look, due
            if self._ended is not None:
                return
            if self._recorded == len(rows) or (
                self._coming and self._coming[0].rows == self._recorded
            ):
                return
            row = rows[self._recorded]
            index = self.timing.gradient(row)
            if index is not None and not self._known[index]:
                return
            yield row, index


def _arithmetic(task: Task, timing: Timing, turns: Turns, data: Any) -> CompiledArithmetic:
    """Returns the arithmetic of a timing, with examples that may be on the device already."""
    planner = Planner(task, timing.schedule, turns, timing.recorded.replicas, data)
    return CompiledArithmetic(task, timing.recorded, turns, planner)


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
    found: tuple[Slices, Any] = _copy(carry.params, [state.refused for state in carry.states])
    return found


@jax.jit
def _copy(params: Slices, refused: list[jax.Array]) -> Any:
    return jax.tree.map(jnp.copy, params), jnp.stack(refused)


def _states(look: Look, exact: CompiledState) -> list[Any]:
    """Returns the states of all shards, with their values."""
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
