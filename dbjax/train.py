"""`run` trains: it takes a task, an algorithm's Config and a cluster, and returns a `Result`."""

from __future__ import annotations

import math
from typing import Any

from dbjax.arguments import keyword_hints, require_known, require_seed
from dbjax.checkpoint import Checkpoints, CheckpointState, Every
from dbjax.executors.compiled import run_compiled, why_not_compiled
from dbjax.executors.engine import run_on_engine
from dbjax.executors.setup import BackgroundFn as BackgroundFn
from dbjax.executors.setup import (
    Ended,
    Executor,
    Setup,
    cannot_compile,
    finish,
    require_executor,
)
from dbjax.executors.setup import Result as Result
from dbjax.executors.setup import RuntimeName as RuntimeName
from dbjax.parameter_server.abstract import DependsOnValues
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.ray import RayOptions
from dbjax.runtime.trace import Trace
from dbjax.schedules.timing import cluster_for
from dbjax.task import Task
from dbjax.validation import (
    algorithm_of,
    require_resumable,
    require_sound,
    require_task,
    require_times,
)


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
        listeners with rows as they come; a listener may end the run with `Trace.stop`. None: a new
        one without spans.
      log: an event log, which records who served whom in which order, so that `dbjax.replay` can
        replay the run.
      ray: where the processes of the Ray runtime are placed, and which resources they ask for;
        None: `RayOptions()`.
      executor: how the arithmetic of a virtual run is done. "engine" does it while the program
        runs. "compiled" runs the program without arithmetic, and leaves that to one compiled
        program: much faster for small networks, with the same numbers. "auto" takes the compiled
        one where it can and where it pays; the summary says which was taken, and why.

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
    require_times(config, until_s, evaluate_every_s)
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
    setup = Setup(
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
        task_warnings,
    )
    return finish(setup, _ended(setup, resume, executor))


def _ended(setup: Setup, resume: CheckpointState | None, executor: Executor) -> Ended:
    """Runs the program on the executor that was asked for, or on the one that can."""
    require_executor(executor)
    setup.trace.resumed_rows = 0  # of another run, if the trace has been used before
    rows = len(setup.trace.rows)
    why_not = "executor='engine'" if executor == "engine" else why_not_compiled(setup, resume)
    if why_not is None:
        try:
            return run_compiled(setup, resume, only=executor == "compiled")
        except DependsOnValues as error:
            why_not = str(error)
            setup.trace.begin_again(rows)
    if executor == "compiled":
        raise cannot_compile(why_not)
    return run_on_engine(setup, resume, why_not)
