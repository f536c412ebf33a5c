"""`run`: a task, an algorithm's Config and a cluster in; metrics and parameters out."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal, NamedTuple

from dbjax.arguments import keyword_hints, require_known
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
from dbjax.monitoring.signals import on_interrupt
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.quantities import require_positive, require_seed
from dbjax.runtime.ray import RayOptions, ray_runtime
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Row, Trace
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.task import Program, Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_sound, require_task

BackgroundFn = Callable[[Node, Runtime], Coroutine[Any, Any, None]]
RuntimeName = Literal["virtual", "threads", "ray"]
_LOG = logging.getLogger("dbjax")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves in memory.

    Attributes:
      params: final parameters, as the shards hold them.
      summary: one number, or small table, per name (docs/design.md lists them).
      trace: rows of metrics, and spans.
      staleness_histogram: staleness in updates -> how many pushes, over all shards.
    """

    params: Params
    summary: Row
    trace: Trace
    staleness_histogram: dict[int, int]

    @property
    def evaluations(self) -> list[Row]:
        """The rows of the evaluations, in order of time."""
        return [row for row in self.trace.rows if row["node"] == "evaluator"]


@dataclasses.dataclass(frozen=True)
class Times:
    """When a run ends, is looked at, and is written down."""

    until_s: float
    evaluate_s: float
    checkpoint: Every | None
    checkpoints: Checkpoints | None
    background: BackgroundFn | None


class _Machines(NamedTuple):
    """What a runtime is made of."""

    name: str
    cluster: Cluster | None
    seed: int
    trace: Trace
    log: EventLog | None
    ray: RayOptions | None


class _Run(NamedTuple):
    """A program in its place."""

    machines: Runtime
    program: Program
    taking: CheckpointManager
    evaluations: EvaluationSchedule
    config: Any
    resumed_rows: int = 0  # rows of the run before, where it does not go on exactly


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
    """Trains `task` with the algorithm whose `Config` is given.

    The first Ctrl-C, or SIGTERM, ends the run cleanly, with what there is, and a checkpoint.

    Args:
      config: of any module in `dbjax.algorithms`, e.g. `downpour.Config(replicas=8)`.
      runtime: "virtual": in deterministic virtual time on `cluster`; "threads": in real
        time, one thread for each replica; "ray": in real time, a process for each replica and
        each shard, on one machine or many.
      cluster: machines, network and failures of the virtual runtime.
      until_s: seconds on the run's clock; None: until every replica has done its steps.
      evaluate_every_s: between evaluations, in seconds on the run's clock; None: only
        before and after.
      checkpoint_every: how often checkpoints are taken: what a shard without a backup goes on
        from, when its machine is back; None: from the beginning.
      checkpoints: where they are written, and one more at the end.
      resume: the checkpoint of a run that is taken up, `checkpoints.latest()`; it may have had
        another number of shards or replicas. Time goes on where it was. A virtual run of the
        same program goes on exactly: all numbers are as if it had not been interrupted, or
        had been given its `until_s` at once; `checkpoint_every` belongs to the program. (Of its
        spans only those from then on are there.)
      beside: a main of one's own, outside of the cluster: `background(node, runtime)`.
      seed: of the randomness of algorithms, and of whatever has no seed of its own: the order of
        the data (`Task.seed`) and all that the cluster draws (`Cluster.seed`).
      trace: to collect spans (`Trace(max_spans=...)`) or to listen to rows as they come.
      log: of who served whom in which order, from which `dbjax.replay` does the run again.
      ray: where the processes of the Ray runtime are placed, and what they ask for.

    Raises:
      ValueError, TypeError: nothing would end the run, an argument does not fit the runtime, or
        the task, the config or another argument is not what it must be. This is said before
        anything is placed.
    """
    given = locals()
    require_task(task)
    algorithm_of(config)
    # What `resume` and `runtime` must be is said below, with more of a remedy.
    own = ("resume", "runtime")
    hints = {name: hint for name, hint in keyword_hints(run).items() if name not in own}
    require_known("dbjax.run", {name: given[name] for name in hints}, hints)
    _check_times(config, until_s, evaluate_every_s)
    seed = require_seed("seed", seed)
    task = task.seeded(seed)
    if resume is not None and not isinstance(resume, CheckpointState):
        raise TypeError(
            f"resume={resume!r} is a {type(resume).__name__}; give what a checkpoint says, "
            "Checkpoints(directory).latest()"
        )
    of_task = require_sound(task)
    trace = trace if trace is not None else Trace()
    end_s = math.inf if until_s is None else until_s
    every_s = math.inf if evaluate_every_s is None else evaluate_every_s
    times = Times(end_s, every_s, checkpoint_every, checkpoints, background)
    cluster = cluster and _cluster_for_task(cluster, task)
    on = _Machines(runtime, cluster, seed, trace, log, ray)
    placed = _place_or_fall_back(on, task, config, times, resume)
    if log is not None and resume is not None:
        log.no_replay("it was taken up from a checkpoint")
    try:
        with _log_deaths(log, trace):
            return _run(placed, task, trace, times, of_task)
    finally:
        placed.machines.close()
        if log is not None:
            log.end()
        # Services and futures refer to each other. What they held, such as parameters, is
        # freed now, and not whenever all objects of the process are looked through.
        gc.collect(1)


def _check_times(config: Any, until_s: float | None, evaluate_every_s: float | None) -> None:
    if until_s is not None:
        require_positive("until_s", until_s, "; or None, with steps in the config")
    elif getattr(config, "steps", None) is None:
        raise ValueError("nothing would end this run: give until_s, or steps in the config")
    if evaluate_every_s is not None:
        require_positive("evaluate_every_s", evaluate_every_s, "; or None")


@contextlib.contextmanager
def _log_deaths(log: EventLog | None, trace: Trace) -> Iterator[None]:
    """A log says at once, and not at its end, that there is no replay: it may break off."""
    if log is None:
        yield
        return

    def listen(row: Row) -> None:
        if row.get("event") == "died":
            trace.unlisten(listen)
            log.no_replay(f"{row['node']} died")

    with trace.listening(listen):
        yield


def _run(run: _Run, task: Task, trace: Trace, times: Times, of_task: list[str]) -> Result:
    machines, program, taking, _, config, resumed_rows = run
    log_warnings(trace, 0.0, of_task)
    begin = time.perf_counter()
    with watching_losses(trace, program.recent_losses), on_interrupt(machines.stop) as interrupted:
        end_s = machines.run(times.until_s)
    wall_s, busy = time.perf_counter() - begin, card_utilisation(machines)

    def look_at_end() -> Row:
        with best_effort("what is said of a run that goes wrong"):
            return warn_of_problems(
                program, trace, end_s, program.server.broadcast(program.shard.report).result()
            )
        return {}

    taking.last(end_s, look_at_end)
    final = program.server.fetch(program.shard.peek).result()
    params = program.join(final.slices)
    reports = program.server.broadcast(program.shard.report).result()
    if machines.clock == "virtual":
        check_staleness_accounting(reports)
    last = progress(reports) | {"train_loss": train_loss(trace.rows, program.recent_losses)}
    with best_effort("the evaluation of the final parameters"):
        last = dict(evaluation(program, task, trace, final, reports))
    trace.record("evaluator", end_s, last | busy | look_at_end())
    digest = None
    with best_effort("params_sha256, the digest of the final parameters"):
        digest = params_sha256(params)
    summary = summarise(trace, reports, program, resumed_rows) | {
        "clock": machines.clock,
        "time_s": end_s,
        "wall_s": wall_s,
        "interrupted": interrupted.by,
        "params_sha256": digest,
    }
    if task.most_frequent is not None:
        guess = task.most_frequent
        summary["most_frequent_class"] = {"share": guess.share, "examples": guess.examples}
    backups = getattr(config, "shard_backups", 0)
    ended = FinishedRun(
        task, of_task, program, config.replicas, backups, times.until_s, params, summary
    )
    summary["warnings"] = list[str]()
    with best_effort("warnings, what went wrong in the run"):
        summary["warnings"] = final_warnings(ended, trace, reports)
    return Result(params, summary, trace, staleness_histogram(reports))


def _place_or_fall_back(
    on: _Machines, task: Task, config: Any, times: Times, resume: CheckpointState | None
) -> _Run:
    """The program in its place; where a checkpoint cannot be restored, the one before it is."""
    on.trace.resumed_rows, failed = 0, list[str]()
    while True:
        on.trace.resume_after(resume.rows if resume is not None else ())
        try:
            run = _resume_exactly(on, task, config, times, resume)
            run = run or _place(on, task, config, times, resume, times.checkpoints is not None)
        except CannotRestore as error:
            assert resume is not None
            stored = resume.stored
            where = "the checkpoint" if stored is None else f"checkpoint {stored.path}"
            failed.append(f"{where} cannot be restored: {' '.join(str(error).split())}")
            resume = stored.earlier() if stored is not None else None
            if resume is None:
                raise ValueError(f"{failed[0]}; there is no other to go on from") from error
            path = resume.stored.path if resume.stored is not None else resume.time_s
            _LOG.warning("%s; %s is used instead", failed[-1], path)
        else:
            return run


def _place(
    on: _Machines,
    task: Task,
    config: Any,
    times: Times,
    resume: CheckpointState | None,
    journals: bool,
    incarnation: int | None = None,
) -> _Run:
    """The program in its place, from the beginning or from what a checkpoint says of shards."""
    begin_s, again = (resume.time_s, resume.incarnation + 1) if resume else (0.0, 0)
    machines = _runtime(on, begin_s, again, journals)
    if isinstance(machines, VirtualRuntime):
        machines.ends_itself = getattr(config, "steps", None) is not None
    about = run_signature(task.shapes, config)
    if resume is not None:
        machines.resumed = lambda partition: resume.states(about, partition, config.replicas)
    program: Program = algorithm_of(config).program(machines, task, config)
    again = again if incarnation is None else incarnation
    taking = CheckpointManager(
        program, machines, about, config.replicas, again, times.checkpoints, on.trace
    )
    evaluations = schedule(times.evaluate_s, times.until_s, on.trace.rows)
    machines.observe("evaluator", evaluator, machines, program, task, on.trace, evaluations)
    if times.checkpoint not in (None, Every()):
        machines.observe("checkpointer", taking.main, times.checkpoint)
    if times.background is not None:
        machines.observe("beside", times.background, machines)
    if isinstance(machines, VirtualRuntime) and machines.journals:
        taking.exactly = ExactResume(machines, config, about.structures)
    resumed_rows = len(resume.rows) if resume else 0
    return _Run(machines, program, taking, evaluations, config, resumed_rows)


def _resume_exactly(
    on: _Machines, task: Task, config: Any, times: Times, resume: CheckpointState | None
) -> _Run | None:
    """The program exactly where it stood; None where that is not known, or of another program."""
    if resume is None or resume.exact is None or on.name != "virtual":
        return None
    run = _place(on, task, config, times, None, True, resume.incarnation)
    machines, exactly = run.machines, run.taking.exactly
    assert isinstance(machines, VirtualRuntime)
    if exactly is None or not exactly.fits(resume.exact):
        _LOG.info("not the same program: only what the shards know is taken up")
        return None
    evaluations = dataclasses.replace(run.evaluations)
    try:
        exactly.resume(resume.exact)
    except Exception as error:
        raise CannotRestore(f"{type(error).__name__}: {error}") from error
    if run.evaluations != evaluations:  # it is given more time, or is looked at more often
        vars(run.evaluations).update(vars(evaluations))
        machines.restart("evaluator")
    return run


def _cluster_for_task(cluster: Cluster, task: Task) -> Cluster:
    """With as many machines a replica as the task has it cut into, and the costs' durations."""
    if task.sharding:
        cluster = dataclasses.replace(cluster, replica_machines=task.sharding.devices)
    if cluster.compute_s == "costs":
        cluster = dataclasses.replace(cluster, compute_s=CompiledSteps())
    return cluster


def _runtime(on: _Machines, begin_s: float, incarnation: int, journals: bool) -> Runtime:
    name, cluster, seed, trace, log, ray = on
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
