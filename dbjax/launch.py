"""`run`: a task, an algorithm's Config and a cluster in; metrics and parameters out."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import math
import time
from typing import Any, Literal

from dbjax.interrupts import noted
from dbjax.parallel.speedup import CompiledSteps
from dbjax.runtime.base import Node, Runtime
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.store import Fetched, Report
from dbjax.summary import (
    check_delays,
    params_sha256,
    progress,
    staleness_histogram,
    summarise,
    train_loss,
)
from dbjax.task import Program, Task
from dbjax.trace import Row, Trace
from dbjax.types import Params

RuntimeName = Literal["virtual", "threads"]


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


def run(
    task: Task,
    config: Any,
    *,
    runtime: RuntimeName = "virtual",
    cluster: Cluster | None = None,
    until_s: float | None = None,
    evaluate_every_s: float | None = None,
    checkpoint_every_s: float | None = None,
    seed: int = 0,
    trace: Trace | None = None,
    log: EventLog | None = None,
) -> Result:
    """Trains `task` with the algorithm whose `Config` is given.

    The first Ctrl-C ends the run cleanly, with what there is.

    Args:
      config: of any module in `dbjax.algorithms`, e.g. `downpour.Config(replicas=8)`.
      runtime: "virtual": in deterministic virtual time on `cluster`; "threads": in real
        time, one thread for each replica.
      cluster: machines, network and failures of the virtual runtime.
      until_s: seconds on the run's clock; None: until every replica has done its steps.
      evaluate_every_s: between evaluations, in seconds on the run's clock; None: only
        before and after.
      checkpoint_every_s: between checkpoints, in seconds on the run's clock: what a shard
        without a backup goes on from, when its machine is back; None: from the beginning.
      seed: of the randomness of algorithms (`Task.seed` and `Cluster.seed` are others).
      trace: to collect spans (`Trace(max_spans=...)`) or to listen to rows as they come.
      log: of who served whom in which order, from which `dbjax.replay` does the run again.

    Raises:
      ValueError: nothing would end the run, or an argument does not fit the runtime.
    """
    if until_s is None and getattr(config, "steps", None) is None:
        raise ValueError("nothing would end this run: give until_s, or steps in the config")
    if until_s is not None and not until_s > 0:
        raise ValueError(f"until_s={until_s} must be above 0")
    for name, every in (("evaluate", evaluate_every_s), ("checkpoint", checkpoint_every_s)):
        if every is not None and not every > 0:
            raise ValueError(f"{name}_every_s={every} must be above 0")
    trace = trace if trace is not None else Trace()
    end_s = math.inf if until_s is None else until_s
    every_s = math.inf if evaluate_every_s is None else evaluate_every_s
    try:
        machines = _runtime(runtime, cluster and _for_task(cluster, task), seed, trace, log)
        return _run(machines, task, config, trace, end_s, every_s, checkpoint_every_s)
    finally:
        if log is not None:
            log.flush()
        # Services and futures refer to each other. What they held, such as parameters, is
        # freed now, and not whenever all objects of the process are looked through.
        gc.collect(1)


def _run(
    machines: Runtime,
    task: Task,
    config: Any,
    trace: Trace,
    end_s: float,
    every_s: float,
    checkpoint_every_s: float | None,
) -> Result:
    algorithm = importlib.import_module(type(config).__module__)
    program: Program = algorithm.program(machines, task, config)
    machines.observe("evaluator", _evaluator, program, task, trace, every_s, end_s)
    if checkpoint_every_s is not None:
        machines.observe("checkpointer", _checkpointer, program, machines, checkpoint_every_s)
    begin = time.perf_counter()
    with noted(machines.stop) as interrupted:
        end_s = machines.run(end_s)
    wall_s = time.perf_counter() - begin
    machines.revive()
    final = program.store.pull(program.shard.peek).result()
    params = program.join(final.slices)
    reports = program.store.each(program.shard.report).result()
    if machines.clock == "virtual":
        check_delays(reports)
    trace.record("evaluator", end_s, _evaluation(program, task, trace, final, reports))
    summary = summarise(trace, reports, program) | {
        "clock": machines.clock,
        "time_s": end_s,
        "wall_s": wall_s,
        "interrupted": interrupted.is_set(),
        "params_sha256": params_sha256(params),
    }
    return Result(params, summary, trace, staleness_histogram(reports))


def _for_task(cluster: Cluster, task: Task) -> Cluster:
    """With as many machines a replica as the task has it cut into, and the costs' durations."""
    if task.cut:
        cluster = dataclasses.replace(cluster, replica_machines=task.cut.devices)
    if cluster.compute_s == "costs":
        cluster = dataclasses.replace(cluster, compute_s=CompiledSteps())
    return cluster


def _runtime(
    name: str, cluster: Cluster | None, seed: int, trace: Trace, log: EventLog | None
) -> Runtime:
    if name == "virtual":
        return VirtualRuntime(cluster, seed=seed, trace=trace, log=log)
    if name != "threads":
        raise ValueError(f"runtime={name!r} is neither 'virtual' nor 'threads'")
    if cluster is not None:
        raise ValueError("runtime='threads' runs on this machine: it takes no cluster")
    return ThreadsRuntime(seed=seed, trace=trace, log=log)


async def _evaluator(
    node: Node, program: Program, task: Task, trace: Trace, every_s: float, until_s: float
) -> None:
    """Looks at the store every so often, until just before the end; the cluster does not notice."""
    k, due_s = 0, 0.0
    while due_s < until_s and not math.isclose(due_s, until_s):
        await node.sleep(max(0.0, due_s - node.now()))
        fetched = await program.store.pull(program.shard.peek)
        reports = await program.store.each(program.shard.report)
        node.record(**_evaluation(program, task, trace, fetched, reports))
        k = max(k + 1, math.ceil(node.now() / every_s))
        due_s = k * every_s


async def _checkpointer(node: Node, program: Program, machines: Runtime, every_s: float) -> None:
    """Keeps what every shard knows; the cluster does not notice."""
    for k in itertools.count(1):
        await node.sleep(max(0.0, k * every_s - node.now()))
        states = await program.store.each(program.shard.state)
        names = [shard.name for shard in program.store.shards]
        machines.saved = dict(zip(names, states, strict=True))


def _evaluation(
    program: Program, task: Task, trace: Trace, fetched: Fetched, reports: list[Report]
) -> Row:
    metrics = task.evaluate(program.join(fetched.slices)) if task.evaluate else {}
    return (
        progress(reports)
        | {"train_loss": train_loss(trace.rows, program.recent_losses)}
        | {name: float(value) for name, value in metrics.items()}
    )
