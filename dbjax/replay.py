"""`replay` repeats a real-time run exactly from its event log, in the virtual runtime."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from dbjax.arguments import require_seed, short_repr
from dbjax.errors import ReplayError
from dbjax.executors.setup import Executor, cannot_compile, require_executor
from dbjax.monitoring.metrics import params_sha256
from dbjax.parameter_server.abstract import (
    ArithmeticRecorder,
    DependsOnValues,
    unless_recordable,
)
from dbjax.program import Program
from dbjax.runtime.event_log import Script
from dbjax.runtime.virtual import ReplayRuntime
from dbjax.schedules.execution import run_recorded
from dbjax.schedules.recording import Recorded, recorded
from dbjax.schedules.schedule import Schedule
from dbjax.schedules.timing import AbstractTask
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_task

_LOG = logging.getLogger("dbjax")


class Replayed(NamedTuple):
    """The result of a replay.

    Attributes:
      params: the parameters at the end of the run, or where the log breaks off, with the structure
        of `Task.params`.
      params_sha256: the SHA-256 digest of `params`, comparable to the run's own.
      calls: the number of service calls that were replayed.
      breaks_off: the place at which the log breaks off; None: the log is complete.
    """

    params: Params
    params_sha256: str
    calls: int
    breaks_off: str | None = None


def replay(
    task: Task,
    config: Any,
    script: Script,
    *,
    seed: int = 0,
    executor: Executor = "auto",
) -> Replayed:
    """Replays a run in threads or on Ray call by call, and arrives at the same bytes.

    Every service serves its calls in the order of the log, and every node sees the times that it
    saw in the run. Nodes that died in the run end where they died. All arithmetic is repeated, and
    the versions of the parameters are compared at every call. A log that breaks off is replayed as
    far as its streams are consistent with each other, and a warning says where that is.

    Args:
      task: the task of the run.
      config: the Config of the run's algorithm.
      script: the event log of the run, `dbjax.Script(lines)`.
      seed: the seed of the run.
      executor: how the arithmetic is done: "engine" does it call by call, "compiled" in one
        compiled program afterwards, which is faster and gives the same bytes; "auto" takes the
        compiled one where it can.

    Returns:
      The parameters, their digest, and how much was replayed.

    Raises:
      ReplayError: the log says that it is not enough, as that of a resumed run does; or replicas
        span processes; or a version differs from the log; or the log has calls that the program
        never makes.
      ValueError: the arithmetic of this run cannot be compiled, with executor="compiled".
      TypeError: an argument has the wrong type.
    """
    task = _checked(task, script, seed)
    require_executor(executor)
    if executor != "engine":
        try:
            return _compiled(task, config, script, seed)
        except DependsOnValues as error:
            if executor == "compiled":
                raise cannot_compile(error) from error
    runtime = ReplayRuntime(script, seed=seed)
    program: Program = algorithm_of(config).program(runtime, task, config)
    runtime.run()
    done = _require_whole(runtime, script)
    params = program.join(program.server.fetch(program.shard.peek).result().slices)
    return Replayed(params, params_sha256(params), done, script.breaks_off)


def schedule_of_log(task: Task, config: Any, script: Script, *, seed: int = 0) -> Schedule:
    """Returns the timing of a run in threads or on Ray, from its event log.

    Args:
      task: the task of the run.
      config: the Config of the run's algorithm.
      script: the event log of the run, `dbjax.Script(lines)`.
      seed: the seed of the run.

    Raises:
      ReplayError: the log says that it is not enough, or does not fit the program.
      ValueError: the program computes with parameters or gradients in a way of its own.
      TypeError: an argument has the wrong type.
    """
    task = _checked(task, script, seed)
    try:
        return _recorded(task, config, script, seed).arithmetic.schedule
    except DependsOnValues as error:
        replay(task, config, script, seed=seed, executor="engine")  # which says if the log is wrong
        raise ValueError(f"no schedule can be made of this run: {error}") from error


class _Recording(NamedTuple):
    """A replay without arithmetic."""

    program: Program
    arithmetic: Recorded
    calls: int


def _checked(task: Task, script: Script, seed: int) -> Task:
    """Returns the task with the seed.

    Raises:
      ReplayError: the run cannot be replayed.
      TypeError: an argument has the wrong type.
    """
    require_task(task)
    if not isinstance(script, Script):
        raise TypeError(
            f"script={short_repr(script)} is not a Script: give dbjax.Script(lines) of the log"
        )
    if task.sharding is not None and task.sharding.processes > 1:
        raise ReplayError(
            f"this run cannot be replayed: its replicas span processes={task.sharding.processes}"
        )
    if script.no_replay is not None:
        raise ReplayError(f"this run cannot be replayed: {script.no_replay}")
    if script.breaks_off is None and not script.count():
        raise ReplayError("the event log holds no calls: there is nothing to replay")
    return task.seeded(require_seed("seed", seed))


def _compiled(task: Task, config: Any, script: Script, seed: int) -> Replayed:
    """Replays the calls without arithmetic, and then does all of it in one compiled program.

    Raises:
      DependsOnValues: the arithmetic of this run cannot be compiled.
    """
    found = _recorded(task, config, script, seed)
    params = found.program.join(run_recorded(task, found.arithmetic))
    return Replayed(params, params_sha256(params), found.calls, script.breaks_off)


def _recorded(task: Task, config: Any, script: Script, seed: int) -> _Recording:
    """Replays the calls without arithmetic.

    Raises:
      DependsOnValues: the arithmetic of this run cannot be recorded.
    """
    recorder = ArithmeticRecorder()
    runtime = ReplayRuntime(script, seed=seed, recorder=recorder)
    with unless_recordable():
        program: Program = algorithm_of(config).program(runtime, AbstractTask.of(task), config)
        runtime.run()
    versions = program.server.fetch(program.shard.peek).result().versions
    found = recorded(recorder, versions, task.batch_size)
    return _Recording(program, found, _require_whole(runtime, script))


def _require_whole(runtime: ReplayRuntime, script: Script) -> int:
    """Returns how many calls were replayed; warns if the log breaks off.

    Raises:
      ReplayError: the program did not make all calls of the log.
    """
    done, there_are = runtime.replayed(), script.count()
    if script.breaks_off is not None:
        _LOG.warning(
            "the event log breaks off %s: %d of its %d calls were replayed, the rest of the run "
            "is unknown", script.breaks_off, done, there_are,
        )  # fmt: skip
    elif done != there_are:
        raise ReplayError(
            f"only {done} of the {there_are} calls in the log were made: the log is damaged, or "
            "belongs to another program"
        )
    return done
