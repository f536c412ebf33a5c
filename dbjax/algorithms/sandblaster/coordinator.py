"""Sandblaster: batch methods whose coordinator sends commands to the shards.

Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.2 and Algorithm 1.2.
docs/algorithm.md lists the differences from the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from dbjax.algorithms.sandblaster.batches import Batches, make_batches
from dbjax.algorithms.sandblaster.loss_reduction import require_mean_loss
from dbjax.algorithms.sandblaster.replica import Replica
from dbjax.algorithms.sandblaster.scheduler import CoordinatorCounts, Scheduler
from dbjax.algorithms.sandblaster.space import ShardedSpace, iteration_row
from dbjax.data.portions import Portions
from dbjax.optim import Lbfgs, Method, State, Stops
from dbjax.parameter_server import ParameterServer, Restore, require_backups
from dbjax.parameter_server.gradient_sums import (
    DeferredGradientSums,
    GradientSums,
    OrderedSum,
    UnorderedSum,
)
from dbjax.parameter_server.vector_client import Traffic, VectorClient
from dbjax.parameter_server.vector_shard import VectorShard
from dbjax.program import Program, bounded, require_config
from dbjax.runtime.interface import Handle, Node, Runtime
from dbjax.runtime.node_names import replica_name
from dbjax.task import Task

_TOGETHER = 4096  # the number of examples in one program, if arithmetic may be deferred


@dataclasses.dataclass(frozen=True)
class Config:
    """Configures Sandblaster; a portion of the data is `Task.batch_size` examples.

    Paper: section 4.2.

    Attributes:
      method: the batch method, from `dbjax.optim`: `Lbfgs()`, `ConjugateGradients()`, or
        `GradientDescent()`.
      stops: the stopping criteria of the method; leave their `iterations` None and set `steps`.
      replicas: the number of model replicas.
      shards: the number of shards of the parameter server.
      shard_backups: the number of backups of every shard, 0 or 1, on machines of their own.
      steps: the maximum number of iterations; None: until another criterion holds, or until the
        run's time is over, which must then be given.
      send_every: the number of portions after which a replica sends its gradients; a replica that
        fails loses the gradients that it has not sent.
      prefetch: the number of portions that wait at a replica while it works on another.
      backup_after: when no portion is left to begin, a portion that takes longer than this many
        times the median gets a backup copy on an idle replica; 0: at once; infinite: never.
      order: "free" adds gradients in the order of their arrival, which is fastest; "fixed" adds
        them in the order of the portions, so that every cluster and every runtime compute the same
        bytes.
      sample: the fraction of the data in a batch, in (0, 1]; 1: all data in every iteration.
      overlap: the fraction of a batch that it shares with the next batch, in (0, 0.5].

    Raises:
      ValueError: a value is out of its range, or `stops.iterations` is set.
    """

    method: Method = Lbfgs()
    stops: Stops = Stops()
    replicas: int = bounded(8, at_least=1)
    shards: int = bounded(3, at_least=1)
    shard_backups: int = 0
    steps: int | None = None
    send_every: int = bounded(4, at_least=1)
    prefetch: int = bounded(1, at_least=0)
    backup_after: float = bounded(1.5, at_least=0)
    order: Literal["free", "fixed"] = "free"
    sample: float = 1.0
    overlap: float = 0.25

    def __post_init__(self) -> None:
        require_config(self)
        require_backups("sandblaster", self.shard_backups)
        if not 0 < self.sample <= 1:
            raise ValueError(f"sandblaster.sample={self.sample} must be in (0, 1]")
        if not 0 < self.overlap <= 0.5:
            raise ValueError(f"sandblaster.overlap={self.overlap} must be in (0, 0.5]")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sandblaster.steps={self.steps} must be at least 1, or None")
        if self.stops.iterations is not None:
            raise ValueError(
                f"sandblaster.stops.iterations={self.stops.iterations}: set steps instead"
            )


async def coordinator(
    node: Node,
    server: ParameterServer[VectorShard],
    replicas: Sequence[Handle[Replica]],
    batches: Batches,
    size_of: Callable[[Iterable[int]], int],
    config: Config,
) -> str:
    """Runs the coordinator (Algorithm 1.2, SANDBLASTERLBFGS).

    Args:
      node: the node that the coordinator runs on.
      server: the shards.
      replicas: handles of the replicas.
      batches: the portions that make up each batch.
      size_of: portions -> the number of their examples.
      config: the configuration of the method.

    Returns:
      The reason why it stopped.
    """
    counts, vectors = CoordinatorCounts(), VectorClient(server, node.incarnation << 32)
    scheduler = Scheduler(
        node, replicas, counts, prefetch=config.prefetch, backup_after=config.backup_after
    )
    send_every = config.send_every if config.order == "free" else 1
    space = ShardedSpace(node, vectors, scheduler, counts, batches, size_of, send_every)
    stops = dataclasses.replace(config.stops, iterations=config.steps)
    state = await space.join(stops)
    while state is None or not state.stop:
        state = await space.transaction(config.method, stops, state)
    return state.stop


def program(
    runtime: Runtime, task: Task, config: Config, restore: Restore | None = None
) -> Program:
    """Places shards, replicas and the coordinator on a runtime.

    Args:
      runtime: the runtime that they are placed on.
      task: the training task.
      config: the configuration of the method.
      restore: a function from the partition to the states with which the shards begin; None: they
        begin with the initial parameters.

    Returns:
      The program, ready to run.

    Raises:
      ValueError: the loss is a sum over the examples of a batch, or there are too few portions for
        `config.sample` and `config.overlap`.
    """
    mean = require_mean_loss(task)
    fixed = config.order == "fixed"
    server = ParameterServer.serve(
        runtime,
        VectorShard,
        task.start,
        config.shards,
        OrderedSum if fixed else UnorderedSum,
        backups=config.shard_backups,
        sharding=task.sharding,
        restore=restore,
    )
    data = task.portions
    deferred = runtime.defers_arithmetic and not fixed and task.sharding is None
    if deferred and config.sample < 1:  # the same portions are never computed together again
        data = dataclasses.replace(data, held_bytes=0)
    read_ahead = _nothing if deferred else data.read_ahead
    gradients = _gradients(task, server, data, config.replicas, deferred, mean)
    replicas = [
        runtime.serve(replica_name(r), Replica, server, gradient, read_ahead)
        for r, gradient in enumerate(gradients)
    ]
    batches = make_batches(data.count, config.sample, config.overlap)
    process = runtime.spawn(
        "coordinator", coordinator, server, replicas, batches, data.size_of, config
    )
    return Program(server, VectorShard, (process,), None, summarise, recent_losses=1)


def _gradients(
    task: Task,
    server: ParameterServer[VectorShard],
    data: Portions,
    replicas: int,
    deferred: bool,
    mean: bool,
) -> list[Any]:
    """Returns the function with which each replica computes the gradients of portions.

    All replicas have the same function, except that model-parallel replicas have their own devices.

    Args:
      task: the training task.
      server: the shards.
      data: all portions.
      replicas: the number of replicas.
      deferred: whether arithmetic is deferred until its result is needed.
      mean: whether the loss of several portions is the mean of their losses.
    """
    together = max(1, _TOGETHER // task.batch_size) if mean else 1
    of = functools.partial(
        GradientSums,
        task.loss,
        server.partition,
        data.gather,
        data.size_of,
        together,
        server.like,
    )
    if server.gradients:
        return [of(server.gradients.on_devices(r)) for r in range(replicas)]
    return [DeferredGradientSums(of()) if deferred else of()] * replicas


def _nothing(portions: tuple[int, ...]) -> None:
    """Does nothing: if arithmetic is deferred, no replica waits for data."""


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarises the rows that the coordinator recorded, for the summary of a run.

    Round trips and bytes count only the messages between the coordinator and the shards: its calls
    to replicas carry just a few numbers each.

    Args:
      rows: all rows of the run's trace.

    Returns:
      The entries to add to the summary.
    """
    recorded = (r for r in reversed(rows) if r["node"] == "coordinator" and "step" in r)
    state = State(0, 0, math.nan, math.nan, math.nan)
    last = next(recorded, iteration_row(state, CoordinatorCounts(), Traffic()))
    iterations = max(1, last["step"])
    sent = last["bytes_sent"] + last["bytes_received"]
    return {
        "iterations": last["step"],
        "stopped_because": last["stop"] or "the run's time was over",
        "gradient_norm": last["gradient_norm"],
        "evaluations": last["evaluations"],
        "portions": last["portions"],
        "backups": {"started": last["backups_started"], "won": last["backups_won"]},
        "replicas_lost": last["replicas_lost"],
        "rewinds": last["rewinds"],
        "coordinator": {
            "round_trips_per_iteration": last["round_trips"] / iterations,
            "bytes_per_iteration": sent / iterations,
            "calls_to_replicas_per_iteration": last["calls"] / iterations,
        },
        "phases_s": {"evaluating": last["evaluating_s"], "commanding": last["commanding_s"]},
    }
