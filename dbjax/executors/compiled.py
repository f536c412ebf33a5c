"""Runs a program without arithmetic first, and then does all of it in one compiled program."""

from __future__ import annotations

import time
from typing import Any

from dbjax.checkpoint import (
    CheckpointState,
    RunSignature,
    rows_to_keep,
    run_signature,
)
from dbjax.checkpoint.compiled import CompiledState
from dbjax.checkpoint.encoding import ArrayTable, resolve_nodes
from dbjax.errors import best_effort
from dbjax.executors.setup import Ended, Setup
from dbjax.monitoring.evaluator import evaluation_row, schedule
from dbjax.monitoring.health import log_warnings, warn_of_problems, watching_losses
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import DependsOnValues
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.schedules.execution import Execution, Observers, program_digest
from dbjax.schedules.timing import Look, Timing, time_run
from dbjax.signals import on_interrupt

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
    """Times a run, and then does its arithmetic in one compiled program.

    Args:
      setup: the run.
      resume: the checkpoint of a compiled run to resume from; None: the run begins.
      only: whether the engine may not do it instead.

    Raises:
      DependsOnValues: the engine must do it, or does it sooner; the message says why.
    """
    task, config, trace = setup.task, setup.config, setup.trace
    begin, running = time.perf_counter(), list[VirtualRuntime]()
    signature = run_signature(task.shapes, config)

    def timing_until(until_s: float) -> Timing:
        return time_run(
            task,
            config,
            setup.cluster,
            until_s=until_s,
            evaluations=schedule(setup.evaluate_every_s, setup.until_s, ()),
            seed=setup.seed,
            max_spans=trace.max_spans,
            checkpoint_every=setup.checkpoint_every,
            started=running.append,
        )

    def stop() -> None:
        for runtime in running:
            runtime.stop()

    def save(time_s: float, states: list[Any], exact: CompiledState) -> None:
        if setup.checkpoints is not None:
            incarnation = resume.incarnation if resume is not None else 0
            content = CheckpointState(
                signature.about,
                config.replicas,
                timing.program.server.partition.shards,
                tuple(states),
                incarnation,
                time_s,
                rows_to_keep(trace.rows, timing.program.recent_losses),
                compiled=exact,
            )
            setup.checkpoints.save(content, ArrayTable(signature.structures))

    with on_interrupt(stop) as interrupted:
        timing = timing_until(setup.until_s)
        if interrupted.by is not None:
            timing = timing_until(resume.time_s if resume is not None else 0.0)
        exact = None if resume is None else _fitting(resume, signature, timing)
        count = timing.schedule.gradients
        if not only and exact is None and count < _WORTH_COMPILING:
            raise DependsOnValues(f"compiling would take longer than its {count} gradients")

        def evaluate(look: Look, fetched: Fetched, reports: list[Report]) -> None:
            busy = lambda: look.busy  # noqa: E731
            row = evaluation_row(timing.program, task, trace, busy, look.time_s, fetched, reports)
            trace.record("evaluator", look.time_s, row)

        if exact is not None:
            assert resume is not None
            timing = timing.with_border(exact.versions, resume.time_s)
        observers = Observers(
            evaluate,
            save if setup.checkpoints is not None else None,
            lambda: interrupted.by is not None,
            timing_until,
        )
        execution = Execution(task, config, timing, trace, observers)
        trace.resume_after(resume.rows if resume is not None else ())
        log_warnings(trace, 0.0, setup.task_warnings)
        with watching_losses(trace, timing.program.recent_losses):
            finished = execution.run() if exact is None else execution.resume(exact)
    timing, end = finished.timing, finished.timing.end
    for span in timing.spans.spans:
        trace.span(span.node, span.kind, span.start_s, span.end_s)
    trace.dropped_spans += timing.spans.dropped_spans
    if setup.checkpoints is not None:
        with best_effort("the check for problems of the run"):
            warn_of_problems(timing.program, trace, end.time_s, finished.reports)
        save(end.time_s, finished.states, finished.exact)
        setup.checkpoints.wait()
    return Ended(
        timing.program,
        "virtual",
        end.time_s,
        time.perf_counter() - begin,
        end.busy,
        interrupted.by,
        Fetched(finished.slices, end.versions),
        finished.reports,
        {
            "name": "compiled",
            "why": "its timing does not depend on values",
            "nbytes": execution.nbytes,
        },
    )


def _fitting(
    resume: CheckpointState, signature: RunSignature, timing: Timing
) -> CompiledState | None:
    """Returns the exact state of a checkpoint.

    Raises:
      DependsOnValues: the checkpoint is of another program.
    """
    assert resume.compiled is not None
    exact: CompiledState = resolve_nodes(resume.compiled, signature.structures)
    if exact.program != program_digest(timing, exact.versions):
        raise DependsOnValues("it is resumed with another program: only from the shards' states")
    return exact
