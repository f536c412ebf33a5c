"""Sandblaster: batch methods whose coordinator commands the shards.

Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.2 and Algorithm 1.2.
Departures are listed in docs/algorithm.md.
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
from dbjax.algorithms.sandblaster.space import ShardedSpace
from dbjax.data.portions import Portions
from dbjax.errors import ServiceError, StateLost
from dbjax.optim import Lbfgs, Method, State, Stops
from dbjax.parameter_server import ParameterServer, require_backups
from dbjax.parameter_server.gradient_sums import (
    DeferredGradientSums,
    GradientSums,
    OrderedSum,
    UnorderedSum,
)
from dbjax.parameter_server.vector_client import Traffic, VectorClient
from dbjax.parameter_server.vector_shard import VectorShard
from dbjax.program import Program, require_config
from dbjax.runtime.interface import Handle, Node, Runtime
from dbjax.task import Task

_TOGETHER = 4096  # examples in one program, where arithmetic may be put off


@dataclasses.dataclass(frozen=True)
class Config:
    """Sandblaster. A portion is `Task.batch_size` examples.

    Attributes:
      method: of `dbjax.optim`: `Lbfgs()`, `ConjugateGradients()`, `GradientDescent()`.
      stops: when it has converged; its `iterations` stay None, see `steps`.
      replicas: model replicas.
      shards: of the parameter server.
      shard_backups: copies of every shard on machines of their own, 0 or 1.
      steps: iterations at most; None: until another stop or the end of the run's time,
        which must then be given.
      send_every: portions after which a replica sends its gradients; a death costs those.
      prefetch: portions that wait at a replica while it works on another.
      backup_after: once no portion is left, one that takes longer than this many times
        the median gets a backup copy; 0: whoever is idle copies at once; infinite: never.
      order: "free": gradients are added as they come, fastest; "fixed": in the order of
        the portions, so that every cluster and every runtime give the same bytes.
      sample: share of the data in a batch; 1: all of it in every iteration.
      overlap: share of a sample that it has in common with the next.
    """

    method: Method = Lbfgs()
    stops: Stops = Stops()
    replicas: int = 8
    shards: int = 3
    shard_backups: int = 0
    steps: int | None = None
    send_every: int = 4
    prefetch: int = 1
    backup_after: float = 1.5
    order: Literal["free", "fixed"] = "free"
    sample: float = 1.0
    overlap: float = 0.25

    def __post_init__(self) -> None:
        require_config(
            "sandblaster",
            self,
            at_least_one=("replicas", "shards", "send_every"),
            at_least_zero=("prefetch", "backup_after"),
        )
        require_backups("sandblaster", self.shard_backups)
        if not 0 < self.sample <= 1:
            raise ValueError(f"sandblaster.sample={self.sample} must be in (0, 1]")
        if not 0 < self.overlap <= 0.5:
            raise ValueError(f"sandblaster.overlap={self.overlap} must be in (0, 0.5]")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sandblaster.steps={self.steps} must be at least 1, or None")
        if self.stops.iterations is not None:
            raise ValueError(
                f"sandblaster.stops.iterations={self.stops.iterations}: say steps instead"
            )


async def coordinator(
    node: Node,
    server: ParameterServer[VectorShard],
    replicas: Sequence[Handle[Replica]],
    batch: Batches,
    size_of: Callable[[Iterable[int]], int],
    config: Config,
) -> str:
    """Algorithm 1.2: SANDBLASTERLBFGS; returns why it stopped.

    One that is started again goes on after the last iteration that was finished: its own
    few numbers lie with the shards, beside the vectors.
    """
    state, counts = None, CoordinatorCounts()
    vectors = VectorClient(server, node.incarnation << 32)
    kept = node.saved_progress()  # where the run is taken up exactly where it stood
    known: tuple[State, CoordinatorCounts, Traffic] | None = (
        kept[0] if kept else await vectors.resume()
    )
    if known is not None:  # what is kept must not change
        state, counts = known[0], dataclasses.replace(known[1])
        vectors.traffic = dataclasses.replace(known[2])
    scheduler = Scheduler(
        node, replicas, counts, prefetch=config.prefetch, backup_after=config.backup_after
    )
    send_every = config.send_every if config.order == "free" else 1
    space = ShardedSpace(node, vectors, scheduler, counts, batch, size_of, send_every)
    stops, method = dataclasses.replace(config.stops, iterations=config.steps), config.method
    if state is not None and not kept:
        state = stops.check(dataclasses.replace(state, stop=""))  # it may be given more steps now
        node.record(**_row(state, counts, vectors.traffic))
    if kept:
        _, vectors.command, state = kept
        space.load_state_dict(state)
    while state is None or not state.stop:
        copies = dataclasses.replace(counts), dataclasses.replace(vectors.traffic)
        node.save_progress(((state, *copies), vectors.command, space.state_dict()))
        going_on = method.start(space) if state is None else method.iterate(space, state)
        try:
            state = stops.check(await going_on)
            copies = dataclasses.replace(counts), dataclasses.replace(vectors.traffic)
            await vectors.finish(state.iteration, counts.examples, (method.memo(state), *copies))
        except (StateLost, ServiceError) as error:
            if not isinstance(error.__cause__ or error, StateLost):
                raise
            known = await vectors.resume()  # a shard was restored: back to what all of them know
            state = known[0] if known else None
            counts.rewinds += 1
            continue
        node.record(**_row(state, counts, vectors.traffic))
    return state.stop


def _row(state: State, counts: CoordinatorCounts, traffic: Traffic) -> dict[str, Any]:
    """What the coordinator records after each iteration."""
    return {
        "step": state.iteration,
        "loss": state.loss,
        "gradient_norm": state.gradient_norm,
        "step_length": state.step,
        "stop": state.stop,
        **dataclasses.asdict(counts),
        **dataclasses.asdict(traffic),
    }


def program(runtime: Runtime, task: Task, config: Config) -> Program:
    """Places shards, replicas and the coordinator on a runtime.

    Raises:
      ValueError: the loss is a sum over the examples of a batch.
    """
    mean = require_mean_loss(task)
    fixed = config.order == "fixed"
    order = OrderedSum if fixed else UnorderedSum
    server = ParameterServer.serve(
        runtime,
        VectorShard,
        task.start,
        config.shards,
        order,
        backups=config.shard_backups,
        sharding=task.sharding,
    )
    data = task.portions
    # Time is modelled: arithmetic can be put off.
    modelled = runtime.clock == "virtual" and not fixed and task.sharding is None
    if modelled and config.sample < 1:  # what is computed together is never the same again
        data = dataclasses.replace(data, held_bytes=0)
    read_ahead = _nothing if modelled else data.read_ahead
    gradients = _gradients(task, server, data, config.replicas, modelled, mean)
    replicas = [
        runtime.serve(f"replica/{r}", Replica, server, gradient, read_ahead)
        for r, gradient in enumerate(gradients)
    ]
    batch = make_batches(data.count, config.sample, config.overlap)
    main = runtime.spawn("coordinator", coordinator, server, replicas, batch, data.size_of, config)
    return Program(server, VectorShard, (main,), None, summarise, recent_losses=1)


def _gradients(
    task: Task,
    server: ParameterServer[VectorShard],
    data: Portions,
    replicas: int,
    modelled: bool,
    mean: bool,
) -> list[Any]:
    """What each replica computes portions with: all the same, or each on devices of its own.

    Args:
      mean: whether the loss of several portions is the mean of theirs.
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
        return [of(server.gradients.of(r)) for r in range(replicas)]
    return [DeferredGradientSums(of()) if modelled else of()] * replicas


def _nothing(portions: tuple[int, ...]) -> None:
    """Nobody waits for data where arithmetic is put off."""


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the coordinator says of a run, from the rows that it recorded.

    Its round trips and bytes are those with the shards; what it says to replicas is a few
    numbers a call.
    """
    recorded = (r for r in reversed(rows) if r["node"] == "coordinator" and "step" in r)
    nothing = _row(State(0, 0, math.nan, math.nan, math.nan), CoordinatorCounts(), Traffic())
    last = next(recorded, nothing)
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
