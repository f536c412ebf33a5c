"""Runs a program on the engine: the arithmetic is done while the program runs."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import time
from typing import NamedTuple

from dbjax.checkpoint import (
    CannotRestore,
    CheckpointManager,
    CheckpointState,
    Every,
    ExactResume,
    checkpointer,
    run_signature,
)
from dbjax.errors import best_effort
from dbjax.executors.setup import Ended, Setup
from dbjax.monitoring.evaluator import (
    EvaluationSchedule,
    card_utilisation,
    evaluation_row,
    evaluator,
    schedule,
)
from dbjax.monitoring.health import log_warnings, warn_of_problems, watching_losses
from dbjax.monitoring.metrics import check_staleness_accounting
from dbjax.parameter_server import Fetched, Report
from dbjax.program import Program
from dbjax.runtime.interface import Runtime
from dbjax.runtime.ray import ray_runtime
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Row
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.signals import on_interrupt
from dbjax.validation import algorithm_of

_LOG = logging.getLogger("dbjax")


class _Placed(NamedTuple):
    """A program on its runtime, ready to run.

    Attributes:
      resumed_rows: the number of rows in the trace that belong to the earlier run, if this run is
        resumed from the shards' states only.
    """

    runtime: Runtime
    program: Program
    manager: CheckpointManager
    evaluations: EvaluationSchedule
    resumed_rows: int


def run_on_engine(setup: Setup, resume: CheckpointState | None, why_not: str) -> Ended:
    """Runs a program on the engine.

    Args:
      setup: the run.
      resume: the checkpoint to resume from; None: the run begins.
      why_not: why the run is not compiled.
    """
    log = setup.log
    placed = _place_or_fall_back(setup, resume)
    if log is not None and resume is not None:
        log.no_replay("it was resumed from a checkpoint")
    if log is not None and setup.ray is not None and setup.ray.wire_dtype != "float32":
        log.no_replay("it rounded what replicas and shards sent each other", has_all_calls=True)
    try:
        return _run(setup, placed, why_not)
    finally:
        placed.runtime.close()
        if log is not None:
            log.end()
        # Services and futures refer to each other in cycles. This frees what they hold, such as
        # parameters, now rather than at Python's next full garbage collection.
        gc.collect(1)


def _run(setup: Setup, placed: _Placed, why_not: str) -> Ended:
    trace = setup.trace
    runtime, program, manager, _, resumed_rows = placed
    log_warnings(trace, 0.0, setup.task_warnings)
    begin = time.perf_counter()
    with (
        watching_losses(trace, program.recent_losses),
        trace.stopping(runtime.stop),
        on_interrupt(runtime.stop) as interrupted,
    ):
        end_s = runtime.run(setup.until_s)
    wall_s, busy = time.perf_counter() - begin, card_utilisation(runtime)

    def reports() -> list[Report]:
        return program.server.broadcast(program.shard.report).result()

    def final_problems() -> Row:
        with best_effort("the check for problems of the run"):
            return warn_of_problems(program, trace, end_s, reports())
        return {}

    manager.save_final(end_s, final_problems)
    final = program.server.fetch(program.shard.peek).result()
    last_reports = reports()
    if runtime.clock == "virtual":
        check_staleness_accounting(last_reports)
    executor = {"name": "engine", "why": why_not}
    return Ended(
        program,
        runtime.clock,
        end_s,
        wall_s,
        busy,
        interrupted.by,
        final,
        last_reports,
        executor,
        resumed_rows,
    )


def _place_or_fall_back(setup: Setup, resume: CheckpointState | None) -> _Placed:
    """Places the program; if a checkpoint cannot be restored, uses the one before it."""
    failed = list[str]()
    while True:
        setup.trace.resume_after(resume.rows if resume is not None else ())
        try:
            placed = _resume_exactly(setup, resume)
            return placed or _place(setup, resume, setup.checkpoints is not None)
        except CannotRestore as error:
            assert resume is not None
            stored = resume.stored
            where = "the checkpoint" if stored is None else f"checkpoint {stored.path}"
            failed.append(f"{where} cannot be restored: {' '.join(str(error).split())}")
            resume = stored.earlier() if stored is not None else None
            if resume is None:
                raise ValueError(f"{failed[0]}; there is no other to resume from") from error
            path = resume.stored.path if resume.stored is not None else resume.time_s
            _LOG.warning("%s; %s is used instead", failed[-1], path)


def _place(
    setup: Setup,
    resume: CheckpointState | None,
    journals: bool,
    incarnation: int | None = None,
) -> _Placed:
    """Places the program, from the beginning or from the shards' states of a checkpoint."""
    task, config, trace = setup.task, setup.config, setup.trace
    begin_s, again = (resume.time_s, resume.incarnation + 1) if resume else (0.0, 0)
    runtime = _make_runtime(setup, begin_s, again, journals)
    if isinstance(runtime, VirtualRuntime):
        runtime.simulator.ends_itself = getattr(config, "steps", None) is not None
    signature = run_signature(task.shapes, config)
    algorithm = algorithm_of(config)
    if resume is None:
        program: Program = algorithm.program(runtime, task, config)
    else:
        restore = functools.partial(resume.states, signature, config.replicas)
        program = algorithm.program(runtime, task, config, restore)
    manager = CheckpointManager(
        program,
        runtime,
        signature,
        config.replicas,
        again if incarnation is None else incarnation,
        setup.checkpoints,
        trace,
    )
    evaluations = schedule(setup.evaluate_every_s, setup.until_s, trace.rows)

    def evaluate(time_s: float, fetched: Fetched, reports: list[Report]) -> Row:
        busy = card_utilisation(runtime)
        return evaluation_row(program, task, trace, busy, time_s, fetched, reports)

    runtime.observe("evaluator", evaluator, program, evaluations, evaluate)
    if setup.checkpoint_every not in (None, Every()):
        every = setup.checkpoint_every
        runtime.observe("checkpointer", checkpointer, runtime, program, every, manager.take)
    if setup.background is not None:
        runtime.observe("background", setup.background, runtime)
    if isinstance(runtime, VirtualRuntime) and runtime.simulator.journals:
        manager.exactly = ExactResume(runtime, config, signature.structures)
    return _Placed(runtime, program, manager, evaluations, len(resume.rows) if resume else 0)


def _resume_exactly(setup: Setup, resume: CheckpointState | None) -> _Placed | None:
    """Places the program exactly where it stood.

    Returns:
      None if the checkpoint does not hold that, or holds it for another program or runtime.
    """
    if resume is None or resume.exact is None or setup.runtime != "virtual":
        return None
    placed = _place(setup, None, True, resume.incarnation)
    runtime, exactly = placed.runtime, placed.manager.exactly
    assert isinstance(runtime, VirtualRuntime)
    if exactly is None or not exactly.fits(resume.exact):
        _LOG.info("not the same program: only the shards' states are resumed")
        return None
    evaluations = dataclasses.replace(placed.evaluations)
    try:
        exactly.resume(resume.exact)
    except Exception as error:
        raise CannotRestore(f"{type(error).__name__}: {error}") from error
    if placed.evaluations != evaluations:  # the run has more time now, or is evaluated more often
        vars(placed.evaluations).update(vars(evaluations))
        runtime.restart("evaluator")
    return placed


def _make_runtime(setup: Setup, begin_s: float, incarnation: int, journals: bool) -> Runtime:
    name, cluster, ray = setup.runtime, setup.cluster, setup.ray
    seed, trace, log = setup.seed, setup.trace, setup.log
    if ray is not None and name != "ray":
        raise ValueError(f"ray options are for runtime='ray', not {name!r}")
    if name == "virtual":
        return VirtualRuntime(
            cluster,
            seed=seed,
            trace=trace,
            log=log,
            begin_s=begin_s,
            incarnation=incarnation,
            journals=journals,
        )
    if name not in ("threads", "ray"):
        raise ValueError(f"runtime={name!r} is neither 'virtual' nor 'threads' nor 'ray'")
    if cluster is not None:
        raise ValueError(f"runtime={name!r} runs on real machines: it takes no cluster")
    if name == "ray":
        return ray_runtime(
            ray, seed=seed, trace=trace, log=log, begin_s=begin_s, incarnation=incarnation
        )
    return ThreadsRuntime(seed=seed, trace=trace, log=log, begin_s=begin_s, incarnation=incarnation)
