"""`run` trains: it takes a task, an algorithm's Config and a cluster, and returns a `Result`."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, get_args

from dbjax.arguments import keyword_hints, require_known, require_positive, require_seed
from dbjax.checkpoint import (
    CannotRestore,
    CheckpointManager,
    Checkpoints,
    CheckpointState,
    Every,
    ExactResume,
    RunSignature,
    checkpointer,
    rows_to_keep,
    run_signature,
)
from dbjax.checkpoint.compiled import CompiledState
from dbjax.checkpoint.encoding import ArrayTable, resolve_nodes
from dbjax.errors import best_effort
from dbjax.monitoring.evaluator import (
    EvaluationSchedule,
    card_utilisation,
    evaluation,
    evaluator,
    record_evaluation,
    schedule,
)
from dbjax.monitoring.health import (
    FinishedRun,
    final_warnings,
    log_warnings,
    warn_of_problems,
    watching_losses,
)
from dbjax.monitoring.metrics import (
    check_staleness_accounting,
    params_sha256,
    progress,
    staleness_histogram,
    summarise,
    train_loss,
)
from dbjax.parameter_server import Fetched, Report
from dbjax.parameter_server.abstract import DependsOnValues
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.ray import RayOptions, ray_runtime
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Row, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.schedules.execution import Execution, Observers, program_digest
from dbjax.schedules.timing import Look, Timing, cluster_for, time_run
from dbjax.signals import on_interrupt
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_resumable, require_sound, require_task

BackgroundFn = Callable[[Node, Runtime], Coroutine[Any, Any, None]]
RuntimeName = Literal["virtual", "threads", "ray"]
Executor = Literal["auto", "engine", "compiled"]
_LOG = logging.getLogger("dbjax")
_WORTH_COMPILING = 500  # gradients; fewer are done sooner than their program is compiled


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      params: the final parameters, as the shards hold them, with the structure of `Task.params`.
      summary: one number or small table for each name, as in summary.json.
      trace: the rows of metrics, and the spans.
      staleness_histogram: the number of pushes at each staleness, which is measured in updates,
        over all shards.
    """

    params: Params
    summary: Row
    trace: Trace
    staleness_histogram: dict[int, int]

    @property
    def evaluations(self) -> list[Row]:
        """The rows of the trace that evaluations recorded, in order of time."""
        return [row for row in self.trace.rows if row["node"] == "evaluator"]


class _Setup(NamedTuple):
    """The arguments of `run`, checked and completed."""

    task: Task
    config: Any
    runtime: str
    cluster: Cluster | None
    until_s: float
    evaluate_every_s: float
    checkpoint_every: Every | None
    checkpoints: Checkpoints | None
    background: BackgroundFn | None
    seed: int
    trace: Trace
    log: EventLog | None
    ray: RayOptions | None


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


def run(
    task: Task,
    config: Any,
    *,
    runtime: RuntimeName = "virtual",
    cluster: Cluster | None = None,
    until_s: float | None = None,
    evaluate_every_s: float | None = None,
    checkpoint_every: Every | None = None,
    checkpoints: Checkpoints | None = None,
    resume: CheckpointState | None = None,
    background: BackgroundFn | None = None,
    seed: int = 0,
    trace: Trace | None = None,
    log: EventLog | None = None,
    ray: RayOptions | None = None,
    executor: Executor = "auto",
) -> Result:
    """Trains `task` with the algorithm to which `config` belongs.

    The first Ctrl-C or SIGTERM ends the run cleanly: it returns the results so far, and writes a
    checkpoint if `checkpoints` is given.

    Args:
      task: the task to train.
      config: the Config of any module in `dbjax.algorithms`, e.g. `downpour.Config(replicas=8)`.
      runtime: "virtual" runs in deterministic virtual time on `cluster`; "threads" in real time,
        with a thread for each replica; "ray" in real time, with an operating-system process for
        each replica and each shard, on one machine or many.
      cluster: the machines, network and failures of the virtual runtime; None: `Cluster()`. The
        other runtimes take none.
      until_s: when to end, in seconds on the run's clock; None: when every replica has taken its
        steps.
      evaluate_every_s: the time between evaluations, in seconds on the run's clock; None: the
        task is evaluated only at the beginning and at the end.
      checkpoint_every: how often checkpoints are taken. When the machine of a shard without a
        backup comes back, the shard continues from the latest checkpoint; None: no checkpoints are
        taken during the run, so such a shard starts again from the initial parameters.
      checkpoints: where checkpoints are written; one more is written at the end. None: they stay
        in memory.
      resume: the checkpoint to resume from, such as `checkpoints.latest()`; that run may have had
        another number of shards or replicas. The clock continues from the checkpoint's time. A
        virtual run of the same program is resumed exactly: all numbers are as if it had not been
        interrupted, or had been given its `until_s` from the start. Changing `checkpoint_every`
        breaks exact resumption. The trace lacks the spans of the earlier part.
      background: a coroutine function of your own, `background(node, runtime)`, which runs on a
        node outside the cluster.
      seed: the seed of algorithms, and of whatever has no seed of its own: the order of the data
        (`Task.seed`) and everything that the cluster draws (`Cluster.seed`).
      trace: the trace to record into, for collecting spans (`Trace(max_spans=...)`) or for calling
        listeners with rows as they come; None: a new one without spans.
      log: an event log, which records who served whom in which order, so that `dbjax.replay` can
        replay the run.
      ray: where the processes of the Ray runtime are placed, and which resources they ask for;
        None: `RayOptions()`.
      executor: how the arithmetic of a virtual run is done. "engine" does it while the program
        runs. "compiled" runs the program without arithmetic first, and then does all of it in one
        compiled program, which is much faster for small networks and gives the same numbers. "auto"
        takes the compiled one where it can and where it pays; the summary says which was taken, and
        why.

    Returns:
      The final parameters, a summary, and a trace.

    Raises:
      ValueError: nothing would end the run, or an argument has a wrong value or does not fit
        the runtime. This is raised before anything is placed.
      TypeError: an argument has the wrong type.
    """
    given = locals()
    require_task(task)
    algorithm_of(config)
    # `resume` and `runtime` are checked below, with errors that give better remedies.
    own = ("resume", "runtime", "executor")
    hints = {name: hint for name, hint in keyword_hints(run).items() if name not in own}
    require_known("dbjax.run", {name: given[name] for name in hints}, hints)
    _require_times(config, until_s, evaluate_every_s)
    seed = require_seed("seed", seed)
    task = task.seeded(seed)
    if resume is not None and not isinstance(resume, CheckpointState):
        raise TypeError(
            f"resume={resume!r} is a {type(resume).__name__}; give the state of a checkpoint, "
            "Checkpoints(directory).latest()"
        )
    if resume is not None:
        require_resumable(config)
    task_warnings = require_sound(task)
    setup = _Setup(
        task,
        config,
        runtime,
        cluster and cluster_for(cluster, task),
        math.inf if until_s is None else until_s,
        math.inf if evaluate_every_s is None else evaluate_every_s,
        checkpoint_every,
        checkpoints,
        background,
        seed,
        trace if trace is not None else Trace(),
        log,
        ray,
    )
    if executor not in get_args(Executor):
        raise ValueError(f"executor={executor!r} is neither 'auto' nor 'engine' nor 'compiled'")
    why_not = "executor='engine'" if executor == "engine" else _why_not_compiled(setup, resume)
    if why_not is None:
        try:
            return _run_compiled(setup, resume, task_warnings, only=executor == "compiled")
        except DependsOnValues as error:
            why_not = str(error)
    if executor == "compiled":
        raise ValueError(f"executor='compiled': {why_not}; use executor='auto'")
    placed = _place_or_fall_back(setup, resume)
    if log is not None and resume is not None:
        log.no_replay("it was resumed from a checkpoint")
    if log is not None and ray is not None and ray.wire_dtype != "float32":
        log.no_replay("it rounded what replicas and shards sent each other", has_all_calls=True)
    try:
        return _run(setup, placed, task_warnings, why_not)
    finally:
        placed.runtime.close()
        if log is not None:
            log.end()
        # Services and futures refer to each other in cycles. This frees what they hold, such as
        # parameters, now rather than at Python's next full garbage collection.
        gc.collect(1)


def _require_times(config: Any, until_s: float | None, evaluate_every_s: float | None) -> None:
    if until_s is not None:
        require_positive("until_s", until_s, "; or None, with steps in the config")
    elif getattr(config, "steps", None) is None:
        raise ValueError("nothing would end this run: give until_s, or steps in the config")
    if evaluate_every_s is not None:
        require_positive("evaluate_every_s", evaluate_every_s, "; or None")


def _why_not_compiled(setup: _Setup, resume: CheckpointState | None) -> str | None:
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


def _run_compiled(
    setup: _Setup, resume: CheckpointState | None, task_warnings: list[str], only: bool
) -> Result:
    """Times a run, and then does its arithmetic in one compiled program.

    Args:
      setup: the run.
      resume: the checkpoint of a compiled run to resume from; None: the run begins.
      task_warnings: what is wrong with the task.
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
            record_evaluation(
                timing.program, task, trace, lambda: look.busy, look.time_s, fetched, reports
            )

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
        log_warnings(trace, 0.0, task_warnings)
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
    return _finish(
        setup,
        task_warnings,
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


def _run(setup: _Setup, placed: _Placed, task_warnings: list[str], why_not: str | None) -> Result:
    trace = setup.trace
    runtime, program, manager, _, resumed_rows = placed
    log_warnings(trace, 0.0, task_warnings)
    begin = time.perf_counter()
    with watching_losses(trace, program.recent_losses), on_interrupt(runtime.stop) as interrupted:
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
    return _finish(
        setup,
        task_warnings,
        program,
        runtime.clock,
        end_s,
        wall_s,
        busy,
        interrupted.by,
        final,
        last_reports,
        {"name": "engine", "why": why_not},
        resumed_rows,
    )


def _finish(
    setup: _Setup,
    task_warnings: list[str],
    program: Program,
    clock: str,
    end_s: float,
    wall_s: float,
    busy: Row,
    interrupted: str | None,
    final: Fetched,
    last_reports: list[Report],
    executor: Row,
    resumed_rows: int = 0,
) -> Result:
    """Evaluates the final parameters, and makes the summary."""
    task, config, trace = setup.task, setup.config, setup.trace
    params = program.join(final.slices)
    problems: Row = {}
    with best_effort("the check for problems of the run"):
        problems = warn_of_problems(program, trace, end_s, last_reports)
    last = progress(last_reports) | {"train_loss": train_loss(trace.rows, program.recent_losses)}
    with best_effort("the evaluation of the final parameters"):
        last = dict(evaluation(program, task, trace, final, last_reports))
    trace.record("evaluator", end_s, last | busy | problems)
    digest = None
    with best_effort("params_sha256, the digest of the final parameters"):
        digest = params_sha256(params)
    summary = summarise(trace, last_reports, program, resumed_rows) | {
        "clock": clock,
        "executor": executor,
        "time_s": end_s,
        "wall_s": wall_s,
        "interrupted": interrupted,
        "params_sha256": digest,
    }
    if task.most_frequent is not None:
        guess = task.most_frequent
        summary["most_frequent_class"] = {"share": guess.share, "examples": guess.examples}
    backups = getattr(config, "shard_backups", 0)
    finished = FinishedRun(
        task, task_warnings, program, config.replicas, backups, setup.until_s, params, summary
    )
    summary["warnings"] = list[str]()
    with best_effort("warnings, the list of what went wrong in the run"):
        summary["warnings"] = final_warnings(finished, trace, last_reports)
    return Result(params, summary, trace, staleness_histogram(last_reports))


def _place_or_fall_back(setup: _Setup, resume: CheckpointState | None) -> _Placed:
    """Places the program; if a checkpoint cannot be restored, uses the one before it."""
    setup.trace.resumed_rows, failed = 0, list[str]()
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
    setup: _Setup,
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
    busy = functools.partial(card_utilisation, runtime)
    evaluate = functools.partial(record_evaluation, program, task, trace, busy)
    runtime.observe("evaluator", evaluator, program, evaluations, evaluate)
    if setup.checkpoint_every not in (None, Every()):
        every = setup.checkpoint_every
        runtime.observe("checkpointer", checkpointer, runtime, program, every, manager.take)
    if setup.background is not None:
        runtime.observe("background", setup.background, runtime)
    if isinstance(runtime, VirtualRuntime) and runtime.simulator.journals:
        manager.exactly = ExactResume(runtime, config, signature.structures)
    return _Placed(runtime, program, manager, evaluations, len(resume.rows) if resume else 0)


def _resume_exactly(setup: _Setup, resume: CheckpointState | None) -> _Placed | None:
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


def _make_runtime(setup: _Setup, begin_s: float, incarnation: int, journals: bool) -> Runtime:
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
