"""Runs a program without arithmetic first, and then does all of it in one compiled program."""

from __future__ import annotations

import functools
import time

from dbjax.checkpoint import CheckpointManager, CheckpointState, RunSignature, run_signature
from dbjax.checkpoint.compiled import CompiledState
from dbjax.checkpoint.encoding import resolve_nodes
from dbjax.errors import best_effort
from dbjax.executors.setup import Ended, Setup
from dbjax.executors.timings import timed_run
from dbjax.monitoring.evaluator import evaluation_row
from dbjax.monitoring.health import log_warnings, warn_of_problems, watching_losses
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import DependsOnValues
from dbjax.program import Program
from dbjax.schedules.execution import Execution, Finished, Observers, program_digest
from dbjax.schedules.timing import Look, Timing
from dbjax.signals import on_interrupt

_FIRST = 4096  # gradients of the first part of a run
_WORTH_COMPILING = 500  # gradients; fewer are done sooner than their program is compiled


def why_not_compiled(setup: Setup, resume: CheckpointState | None) -> str | None:
    """Returns why the arithmetic of a run cannot be compiled; None: as far as is known, it can."""
    reasons = {
        f"runtime={setup.runtime!r} is timed by real machines": setup.runtime != "virtual",
        "background may look at the run while it goes on": setup.background is not None,
        "an event log was asked for": setup.log is not None,
        "the replicas are sharded over devices": setup.task.sharding is not None,
        "it is resumed from a run that was not compiled": resume is not None
        and resume.compiled is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def run_compiled(setup: Setup, resume: CheckpointState | None, only: bool) -> Ended:
    """Times a run, and does its arithmetic in one compiled program.

    The run is timed in parts, each as long as all before, and the arithmetic of a part is done
    before the next one is timed.

    Args:
      setup: the run.
      resume: the checkpoint of a compiled run to resume from; None: the run begins.
      only: whether the engine may not do it instead.

    Raises:
      DependsOnValues: the engine must do it, or does it sooner; the message says why.
    """
    trace, begin = setup.trace, time.perf_counter()
    timed, keep = timed_run(setup, setup.until_s)
    with on_interrupt(timed.stop) as interrupted:
        timed.advance(_FIRST, resume.time_s if resume is not None else 0.0)
        if interrupted.by is None:
            timing = timed.timing()
        elif resume is None:
            timing = timed.timing(timed.begin)
        else:
            timed, _ = timed_run(setup, resume.time_s)
            timed.advance()
            timing = timed.timing()
        signature = run_signature(setup.task.shapes, setup.config)
        state = None if resume is None else _fitting(resume, signature, timing)
        if not (only or state or interrupted.by):
            _require_worth(timing)
        border = 0
        if resume is not None and state is not None:
            timing, border = timing.with_border(state.versions, resume.time_s)
        manager = CheckpointManager(
            timing.program,
            timed.runtime,
            signature,
            setup.config.replicas,
            resume.incarnation if resume is not None else 0,
            setup.checkpoints,
            trace,
        )
        observers = Observers(
            functools.partial(_evaluate, setup, timing.program),
            manager.save_compiled if setup.checkpoints is not None else None,
            lambda: interrupted.by is not None,
            lambda: bool(stopped),
            timed.timing,
        )
        trace.resume_after(resume.rows if resume is not None else ())
        execution = Execution(setup.task, timing, trace, observers, state, border)
        timed.runtime.warn_of_unused_machines()
        log_warnings(trace, 0.0, setup.task_warnings)
        stopped = list[None]()
        with (
            watching_losses(trace, timing.program.recent_losses),
            trace.stopping(lambda: stopped.append(None)),
        ):
            execution.run()
            while not (timed.ended or interrupted.by or stopped):
                timed.advance(2 * execution.timing.schedule.gradients)
                if interrupted.by is None:
                    execution = execution.longer(timed.timing())
                    execution.run()
            finished = execution.end()
    if interrupted.by is None:
        keep()
    _leave(setup, manager, finished)
    end = finished.timing.end
    why = "its timing does not depend on values"
    return Ended(
        finished.timing.program,
        "virtual",
        end.time_s,
        time.perf_counter() - begin,
        end.busy,
        interrupted.by,
        Fetched(finished.slices, end.versions),
        finished.reports,
        {"name": "compiled", "why": why, "nbytes": finished.nbytes},
    )


def _leave(setup: Setup, manager: CheckpointManager, finished: Finished) -> None:
    """Records the spans of a run that has ended, and saves its last checkpoint."""
    trace, timing = setup.trace, finished.timing
    spans, dropped = timing.spans
    for span in spans:
        trace.span(span.node, span.kind, span.start_s, span.end_s)
    trace.dropped_spans += dropped
    if setup.checkpoints is not None and finished.checkpoint is not None:
        time_s = timing.end.time_s
        with best_effort("the check for problems of the run"):
            warn_of_problems(timing.program, trace, time_s, finished.reports)
        manager.save_compiled(time_s, *finished.checkpoint)
        setup.checkpoints.wait()


def _evaluate(
    setup: Setup, program: Program, look: Look, fetched: Fetched, reports: list[Report]
) -> None:
    """Records an evaluation."""
    row = evaluation_row(program, setup.task, setup.trace, look.busy, look.time_s, fetched, reports)
    setup.trace.record("evaluator", look.time_s, row)


def _require_worth(timing: Timing) -> None:
    """Raises DependsOnValues if the engine is done sooner."""
    count = timing.schedule.gradients
    if count < _WORTH_COMPILING:
        raise DependsOnValues(f"compiling would take longer than its {count} gradients")


def _fitting(resume: CheckpointState, signature: RunSignature, timing: Timing) -> CompiledState:
    """Returns the exact state of a checkpoint.

    Raises:
      DependsOnValues: the checkpoint is of another program.
    """
    exact = resume.compiled
    assert exact is not None
    if resume.about != signature.about or exact.program != program_digest(timing, exact.versions):
        raise DependsOnValues("it is resumed with another program: only from the shards' states")
    found: CompiledState = resolve_nodes(exact, signature.structures)
    return found
