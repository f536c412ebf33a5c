"""`run` trains: it takes a task, an algorithm's Config and a cluster, and returns a `Result`."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple

from dbjax.arguments import keyword_hints, require_known, require_positive, require_seed
from dbjax.checkpoint import (
    CannotRestore,
    CheckpointManager,
    Checkpoints,
    CheckpointState,
    Every,
    ExactResume,
    run_signature,
)
from dbjax.costs.speedup import CompiledSteps
from dbjax.errors import best_effort
from dbjax.monitoring.evaluator import (
    EvaluationSchedule,
    card_utilisation,
    evaluation,
    evaluator,
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
from dbjax.parameter_server import Report
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.ray import RayOptions, ray_runtime
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Row, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.signals import on_interrupt
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_resumable, require_sound, require_task

BackgroundFn = Callable[[Node, Runtime], Coroutine[Any, Any, None]]
RuntimeName = Literal["virtual", "threads", "ray"]
_LOG = logging.getLogger("dbjax")


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
    own = ("resume", "runtime")
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
        cluster and _cluster_for_task(cluster, task),
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
    placed = _place_or_fall_back(setup, resume)
    if log is not None and resume is not None:
        log.no_replay("it was resumed from a checkpoint")
    if log is not None and ray is not None and ray.wire_dtype != "float32":
        log.no_replay("it rounded what replicas and shards sent each other", has_all_calls=True)
    try:
        return _run(setup, placed, task_warnings)
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


def _run(setup: _Setup, placed: _Placed, task_warnings: list[str]) -> Result:
    task, config, trace = setup.task, setup.config, setup.trace
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
    params, last_reports = program.join(final.slices), reports()
    if runtime.clock == "virtual":
        check_staleness_accounting(last_reports)
    last = progress(last_reports) | {"train_loss": train_loss(trace.rows, program.recent_losses)}
    with best_effort("the evaluation of the final parameters"):
        last = dict(evaluation(program, task, trace, final, last_reports))
    trace.record("evaluator", end_s, last | busy | final_problems())
    digest = None
    with best_effort("params_sha256, the digest of the final parameters"):
        digest = params_sha256(params)
    summary = summarise(trace, last_reports, program, resumed_rows) | {
        "clock": runtime.clock,
        "time_s": end_s,
        "wall_s": wall_s,
        "interrupted": interrupted.by,
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
    runtime.observe("evaluator", evaluator, runtime, program, task, trace, evaluations)
    if setup.checkpoint_every not in (None, Every()):
        runtime.observe("checkpointer", manager.run, setup.checkpoint_every)
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


def _cluster_for_task(cluster: Cluster, task: Task) -> Cluster:
    """Completes a cluster with what depends on the task.

    A replica gets as many machines as the task is sharded over, and `compute_s="costs"` becomes
    the function that computes the costs.
    """
    if task.sharding:
        cluster = dataclasses.replace(cluster, replica_machines=task.sharding.devices)
    if cluster.compute_s == "costs":
        cluster = dataclasses.replace(cluster, compute_s=CompiledSteps())
    return cluster


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
