"""Mini-batch SGD: the single-replica baseline, and synchronous data parallelism.

With one replica, the parameters are on the replica's own machine and nothing is sent over the
network: this is the "SGD [1]" of Dean et al. 2012, Figure 4. With several replicas, each step
averages the gradients of all replicas at the same parameters, and takes as long as the slowest
replica.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import optax

from dbjax.data.stream import Stream
from dbjax.optim.inputs import as_rule
from dbjax.parameter_server import GradientFn, ParameterServer, Restore, require_backups
from dbjax.parameter_server.synchronous import SynchronousSession, SynchronousShard
from dbjax.program import Program, bounded, require_config
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.node_names import replica_name
from dbjax.runtime.trace import Row
from dbjax.task import Task


@dataclasses.dataclass(frozen=True)
class Config:
    """Configures synchronous mini-batch SGD, or any other optax rule.

    Attributes:
      rule: the optax rule that is applied to the mean of the replicas' gradients.
      replicas: the number of replicas; each computes a gradient for every step, on its own part of
        the training data.
      shards: the number of shards of the parameters; must be 1 if there is one replica.
      shard_backups: the number of backups of every shard, 0 or 1, on machines of their own.
      steps: the total number of updates; None: until the run's time is over.

    Raises:
      ValueError: a value is out of its range.
    """

    rule: optax.GradientTransformation = optax.sgd(0.05)
    replicas: int = bounded(1, at_least=1)
    shards: int = bounded(1, at_least=1)
    shard_backups: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", as_rule("sgd.rule", self.rule))
        require_config(self)
        if self.replicas == 1 and self.shards != 1:
            raise ValueError(
                f"sgd.shards={self.shards}: a single replica keeps the parameters itself; use 1"
            )
        require_backups("sgd", self.shard_backups)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sgd.steps={self.steps} must be at least 1, or None")


async def client(
    node: Node,
    server: ParameterServer[SynchronousShard],
    gradient_fn: GradientFn,
    batches: Stream,
    config: Config,
    nodes_can_fail: bool,
) -> None:
    """Runs one replica; all replicas take step k at the same parameters.

    Args:
      node: the node that the replica runs on.
      server: the parameter server.
      gradient_fn: the replica's gradient function.
      batches: the replica's mini-batches.
      config: the configuration of the method.
      nodes_can_fail: whether nodes may fail.
    """
    replica = await SynchronousSession.join(node, server, config.steps)
    while replica.has_next_step(config.steps):
        step, params = replica.step, replica.params.slices
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        if await replica.push(gradient, batches.batch_size):
            node.record(step=step, loss=loss)
    await replica.leave(nodes_can_fail=nodes_can_fail)


def program(
    runtime: Runtime, task: Task, config: Config, restore: Restore | None = None
) -> Program:
    """Places shards and replicas on a runtime; a single replica shares the shard's machine.

    Args:
      runtime: the runtime that they are placed on.
      task: the training task.
      config: the configuration of the method.
      restore: a function from the partition to the states with which the shards begin; None: they
        begin with the initial parameters.

    Returns:
      The program, ready to run.

    Raises:
      ValueError: the rule cannot run on the shards, or the data has too few examples for the
        replicas.
    """
    streams = [task.batches(r, config.replicas) for r in range(config.replicas)]
    server = ParameterServer.serve(
        runtime,
        SynchronousShard,
        task.start,
        config.shards,
        config.replicas,
        name="shard" if config.replicas > 1 else "replica",
        backups=config.shard_backups,
        sharding=task.sharding,
        rule=config.rule,
        restore=restore,
    )
    gradient_fns = server.gradients_of(task.loss, task.batch, config.replicas)
    processes = [
        runtime.spawn(
            replica_name(r), client, server, gradient_fn, stream, config, runtime.nodes_can_fail
        )
        for r, (gradient_fn, stream) in enumerate(zip(gradient_fns, streams, strict=True))
    ]
    return Program(
        server, SynchronousShard, tuple(processes), 0.0, acknowledged=_acknowledged_pushes
    )


def _acknowledged_pushes(rows: Sequence[Row]) -> dict[str, int]:
    """Counts the acknowledged steps: each is one push, attributed to the first replica."""
    return {replica_name(0): 1 + max((row["step"] for row in rows if "step" in row), default=-1)}
