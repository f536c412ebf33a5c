"""The timing of a run in virtual time, without its arithmetic."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbjax.arguments import require_seed
from dbjax.checkpoint import Every, checkpointer
from dbjax.costs.speedup import CompiledSteps
from dbjax.monitoring.evaluator import EvaluationSchedule, card_utilisation, evaluator
from dbjax.monitoring.metrics import check_staleness_accounting
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import (
    AbstractBatch,
    AbstractLoss,
    ArithmeticRecorder,
    DependsOnValues,
    unless_recordable,
)
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.trace import Row, Span, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.runtime.virtual.simulator import rare_garbage_collection
from dbjax.schedules.recording import Recorded, recorded, with_functions_of
from dbjax.schedules.schedule import Schedule
from dbjax.schedules.turns import Turns, rounded, turns_of
from dbjax.task import Task
from dbjax.types import LossFn, Params
from dbjax.validation import algorithm_of, require_task, require_times

_PAUSES = 100_000  # the most that are kept, times replicas and shards
_BETWEEN = 1024  # gradients between two pauses


class Look(NamedTuple):
    """What is seen of a run at one moment.

    Attributes:
      why: "evaluation", "checkpoint" or "pause"; a run may end at a pause.
      time_s: the moment, in seconds on the run's clock.
      rows: how many rows have been recorded before.
      gradients: how many gradients replicas have begun to compute.
      spans: how many spans have been collected, and how many dropped.
      versions: the version of each shard.
      reports: the reports of all shards, but for checkpoints; no pushes are refused in them.
      busy: how long network cards have been busy, see `card_utilisation`.
      states: the states of the shards, which a checkpoint needs.
    """

    why: Literal["evaluation", "checkpoint", "pause"]
    time_s: float
    rows: int
    gradients: int
    spans: tuple[int, int]
    versions: tuple[int, ...]
    reports: list[Report]
    busy: Row
    states: list[Any]


class Border(NamedTuple):
    """A moment at which every shard must have exactly its version.

    Attributes:
      time_s: the moment, in seconds on the run's clock.
      versions: the version of each shard.
      look: what is seen then; None: the run was resumed there.
    """

    time_s: float
    versions: tuple[int, ...]
    look: Look | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Timing:
    """Everything about a run but its arithmetic.

    Attributes:
      recorded: the recorded arithmetic.
      rows: the rows that replicas recorded and those of failures, in order. A "loss" is an
        `AbstractLoss`.
      spans: the spans, and how many were dropped.
      borders: moments in order, the last one is the end.
      program: the program that ran.
    """

    recorded: Recorded
    rows: list[Row]
    spans: tuple[list[Span], int]
    borders: list[Border]
    program: Program

    @property
    def schedule(self) -> Schedule:
        """The schedule."""
        return self.recorded.schedule

    @property
    def end(self) -> Look:
        """What is seen at the end."""
        look = self.borders[-1].look
        assert look is not None
        return look

    def gradient(self, row: Row) -> int | None:
        """Returns the index in the schedule of the gradient whose loss a row holds, if it does."""
        loss = row.get("loss")
        if not isinstance(loss, AbstractLoss):
            return None
        return int(self.recorded.indices[loss.gradient])

    @functools.cached_property
    def turns(self) -> Turns:
        """The order of the arithmetic."""
        found = turns_of(self.schedule, [border.versions for border in self.borders])
        held = zip(self.end.versions, self.end.reports, found.ring, strict=True)
        ring = tuple(
            max(size, rounded(version - _held(report) + 2)) for version, report, size in held
        )
        return dataclasses.replace(found, ring=ring)

    def with_recorded(self, recorded: Recorded) -> Timing:
        """Returns the same timing with other functions in its recorded arithmetic."""
        made = dataclasses.replace(self, recorded=recorded)
        vars(made)["turns"] = self.turns
        return made

    def with_border(self, versions: tuple[int, ...], time_s: float) -> tuple[Timing, int]:
        """Returns the same timing with another border, after others at the same moment.

        Returns:
          The timing, and the number of the new border.

        Raises:
          ValueError: shards never had these versions at that moment.
        """
        *others, end = self.borders
        before = [b for b in others if (b.time_s, sum(b.versions)) <= (time_s, sum(versions))]
        after = [*others[len(before) :], end]
        ascends = all(np.all(np.less_equal(b.versions, versions)) for b in before[-1:])
        if not ascends or np.any(np.less(after[0].versions, versions)):
            raise ValueError(f"the shards do not have the versions {versions} at {time_s:g} s")
        borders = [*before, Border(time_s, versions), *after]
        return dataclasses.replace(self, borders=borders), len(before)


@final
class _AbstractStream:
    """Stands for the `Stream` of a replica, of which only the places of mini-batches are needed."""

    def __init__(self, batch_size: int, replica: int, replicas: int) -> None:
        self.batch_size, self.replica, self.replicas = batch_size, replica, replicas

    def at(self, step: int) -> AbstractBatch:
        """Returns the mini-batch of the given step."""
        return AbstractBatch(self.replica, self.replicas, step)


class _AbstractExamples:
    """Examples of which only the number is known."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: Any) -> Any:
        raise DependsOnValues("it looks at examples in a way of its own")


class AbstractTask(Task):
    """A task whose parameters and examples have no values."""

    @classmethod
    def of(cls, task: Task) -> AbstractTask:
        """Returns the abstract task of a task."""
        shapes = task.shapes
        made = cls(
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
            task.loss,
            _AbstractExamples(len(task.examples)),
            task.batch_size,
            seed=task.seed,
            sharding=task.sharding,
            takes_key=task.takes_key,
        )
        vars(made)["batch"] = task.batch
        return made

    def start(self) -> Params:
        return self.shapes

    def batches(self, replica: int, replicas: int) -> Any:
        super().batches(replica, replicas)  # raises an error if there is too little data
        return _AbstractStream(self.batch_size, replica, replicas)


@final
class TimedRun:
    """A run of an algorithm on a virtual cluster, without arithmetic.

    Args:
      task: the task, with a seed.
      config: the Config of the algorithm.
      cluster: the cluster; None: `Cluster()`.
      until_s: when to end, in seconds on the run's clock; may be infinite.
      evaluations: when the run is evaluated.
      seed: the seed of the algorithm, and of the cluster if it has none.
      max_spans: the largest number of spans to collect.
      checkpoint_every: how often checkpoints are taken; None: only at the end.
      saves: whether checkpoints are saved, even if only at the end.

    Attributes:
      ended: whether the run has ended.
      begin: what is seen at the beginning.
      runtime: the runtime of the run.
      randomness: whether the algorithm has drawn random numbers of its own.

    Raises:
      DependsOnValues: the program computes with parameters in a way of its own; the message says
        why.
    """

    def __init__(
        self,
        task: Task,
        config: Any,
        cluster: Cluster | None,
        *,
        until_s: float,
        evaluations: EvaluationSchedule,
        seed: int,
        max_spans: int = 0,
        checkpoint_every: Every | None = None,
        saves: bool = True,
    ) -> None:
        self.ended, self._stopped, self._until_s = False, False, until_s
        self._batch_size, self._looks = task.batch_size, list[Look]()
        self._part: Look | None = None  # the end of the part that was timed last
        self._complete = list[Timing]()  # the whole timing, when the run has ended
        self._recorder, self._trace = ArithmeticRecorder(), Trace(max_spans=max_spans)
        self.runtime = VirtualRuntime(
            cluster, seed=seed, trace=self._trace, recorder=self._recorder
        )
        self.runtime.simulator.ends_itself = getattr(config, "steps", None) is not None
        with unless_recordable():
            self._program: Program = algorithm_of(config).program(
                self.runtime, AbstractTask.of(task), config
            )
            self._between = max(_BETWEEN, config.replicas)
            self._pairs = config.replicas * len(self._program.server.shards)
            self._saves = saves
            observers = self._program, evaluations, self._evaluate
            self.runtime.observe("evaluator", evaluator, *observers)
            if checkpoint_every not in (None, Every()):
                taking = self.runtime, self._program, checkpoint_every, self._take
                self.runtime.observe("checkpointer", checkpointer, *taking)
            self._pause()
        self.begin = self._looks[-1]

    @rare_garbage_collection(1_000_000)  # hardly any of the objects holds an array
    def advance(self, gradients: float = math.inf, beyond_s: float = -math.inf) -> None:
        """Runs until a pause, the end, or `stop` is called.

        Args:
          gradients: how many gradients are computed until the pause, at least.
          beyond_s: the pause comes after that moment, in seconds on the run's clock.

        Raises:
          DependsOnValues: the timing depends on values; the message says why.
        """
        recorder, runtime, simulator = self._recorder, self.runtime, self.runtime.simulator
        with unless_recordable():
            while not (self.ended or self._stopped):
                recorder.pause_at = len(recorder.gradients) + self._between
                end_s = runtime.run(self._until_s)
                if not recorder.paused():
                    if not self._stopped:
                        self._end(end_s)
                    return
                recorder.pause_at += self._between
                runtime.run(simulator.now_s)  # whatever else happens at this moment
                paused = not self._stopped and self._pause()
                enough = len(recorder.gradients) >= gradients and simulator.now_s > beyond_s
                if paused and enough:
                    return

    @property
    def randomness(self) -> bool:
        return self.runtime.simulator.randomness

    def replacing(
        self,
        rules: Mapping[optax.GradientTransformation, optax.GradientTransformation],
        loss: LossFn,
    ) -> TimedRun | None:
        """Returns the same run with other rules and another loss, on which its timing is the same.

        Args:
          rules: the rule that takes the place of each.
          loss: the loss.

        Returns:
          None if the run applies a rule that is not among those.
        """
        recorder = self._recorder.replacing(rules, loss)
        if recorder is None:
            return None
        found = copy.copy(self)
        found._recorder, found._stopped = recorder, False
        return found

    def stop(self) -> None:
        """Makes `advance` return soon."""
        self._stopped = True
        self.runtime.stop()

    def timing(self, until: Look | None = None) -> Timing:
        """Returns the timing of the run if it had ended at a pause; None: at the latest one."""
        last, recorder = until or self._looks[-1], self._recorder
        if until is None and self._complete:
            found = self._complete[0]
            return found.with_recorded(with_functions_of(recorder, found.recorded))
        looks = self._looks[: next(i for i, look in enumerate(self._looks) if look is last)]
        recorder = recorder.until(last.gradients, last.versions)
        borders = [Border(look.time_s, look.versions, look) for look in looks]
        borders.sort(key=lambda border: (border.time_s, sum(border.versions)))
        collected, dropped = last.spans
        program = self._program
        if until is not None or not self.ended:  # its processes may be further than that
            program = dataclasses.replace(program, acknowledged=lambda rows: {})
        made = Timing(
            recorded(recorder, last.versions, self._batch_size),
            self._trace.rows[: last.rows],
            (self._trace.spans[:collected], dropped),
            [*borders, Border(last.time_s, last.versions, last)],
            program,
        )
        if until is None:
            self._part = last
            if self.ended:
                self._complete.append(made)
        return made

    def _end(self, end_s: float) -> None:
        self.ended, busy = True, card_utilisation(self.runtime)
        self.runtime.revive()
        if not self._pause(end_s, busy):
            raise DependsOnValues("a shard goes back to a checkpoint")
        check_staleness_accounting(self._looks[-1].reports)

    def _pause(self, time_s: float | None = None, busy: Row | None = None) -> bool:
        """Looks at the run, unless shards are down or have lost what they had applied."""
        program, server = self._program, self._program.server
        if not self.runtime.serves():
            return False
        peek, report = server.fetch(program.shard.peek), server.broadcast(program.shard.report)
        if not all(call.done() and call.error() is None for call in (peek, report)):
            return False
        versions, reports = peek.result().versions, report.result()
        if versions != self._versions():
            return False
        states = server.broadcast(program.shard.checkpoint).result() if self._saves else []
        time_s = self.runtime.simulator.now_s if time_s is None else time_s
        self._look("pause", time_s, versions, reports, states, busy)
        self._forget_pauses()
        return True

    def _forget_pauses(self) -> None:
        """Forgets every second pause when there are many: they hold something of every replica."""
        kept = self._looks[0], self._part
        pauses = [k for k in self._looks if k.why == "pause" and all(k is not one for one in kept)]
        if len(pauses) > max(8, _PAUSES // self._pairs):
            forgotten = {id(look) for look in pauses[-2::-2]}
            self._looks = [look for look in self._looks if id(look) not in forgotten]

    def _evaluate(self, time_s: float, fetched: Fetched, reports: list[Report]) -> None:
        self._look("evaluation", time_s, fetched.versions, reports, [])

    def _take(self, time_s: float, states: list[Any]) -> None:
        self._look("checkpoint", time_s, self._versions(), [], states)

    def _look(
        self,
        why: Literal["evaluation", "checkpoint", "pause"],
        time_s: float,
        versions: tuple[int, ...],
        reports: list[Report],
        states: list[Any],
        busy: Row | None = None,
    ) -> None:
        trace, busy = self._trace, busy or card_utilisation(self.runtime)
        counts = len(trace.rows), len(self._recorder.gradients)
        spans = len(trace.spans), trace.dropped_spans
        self._looks.append(Look(why, time_s, *counts, spans, versions, reports, busy, states))

    def _versions(self) -> tuple[int, ...]:
        return tuple(map(len, self._recorder.updates))


def _held(report: Report) -> int:
    """Returns the oldest version that a replica has fetched last, and may still use."""
    return min(report.staleness.fetched_last(), default=report.version)


def cluster_for(cluster: Cluster, task: Task) -> Cluster:
    """Completes a cluster with what depends on the task.

    A replica gets as many machines as the task is sharded over, and `compute_s="costs"` becomes
    the function that computes the costs.
    """
    if task.sharding:
        cluster = dataclasses.replace(cluster, replica_machines=task.sharding.devices)
    if cluster.compute_s == "costs":
        cluster = dataclasses.replace(cluster, compute_s=CompiledSteps())
    return cluster


def schedule(
    task: Task,
    config: Any,
    cluster: Cluster | None = None,
    *,
    until_s: float | None = None,
    seed: int = 0,
) -> Schedule:
    """Returns the timing of a run in virtual time, whose arithmetic is not done.

    Args:
      task: the task; only shapes and the number of examples are used.
      config: the Config of the algorithm.
      cluster: the cluster; None: `Cluster()`.
      until_s: when the run ends, in seconds on its clock; None: when every replica has taken its
        steps.
      seed: the seed of the run.

    Raises:
      ValueError: nothing would end the run, or its timing depends on values.
    """
    require_task(task)
    algorithm_of(config)
    require_times(config, until_s)
    seed = require_seed("seed", seed)
    until_s = math.inf if until_s is None else until_s
    try:
        run = TimedRun(
            task.seeded(seed),
            config,
            cluster and cluster_for(cluster, task),
            until_s=until_s,
            evaluations=EvaluationSchedule(math.inf, until_s, 1),
            seed=seed,
        )
        run.advance()
        return run.timing().schedule
    except DependsOnValues as error:
        raise ValueError(f"no schedule can be made of this run: {error}") from error
