"""Downpour SGD: asynchronous stochastic gradient descent with a parameter server.

Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 and Algorithm 1.1.
docs/algorithm.md lists the differences from the paper.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import optax

from dbjax.parameter_server.partition import slice_nbytes
from dbjax.program import (
    AsynchronousConfig,
    Client,
    GradientFn,
    Node,
    Program,
    PushTimes,
    ReplicaSession,
    Restore,
    Runtime,
    SessionOptions,
    Shard,
    ShardServer,
    Slice,
    Stream,
    Task,
    asynchronous,
    bounded,
    method_name,
)


@dataclasses.dataclass(frozen=True)
class Config(AsynchronousConfig):
    """Configures Downpour SGD.

    Paper: section 4.1.

    Attributes:
      rule: the server rule, an optax rule that every shard applies to the accumulated gradients it
        receives.
      replicas: the number of model replicas, each on its own part of the training data.
      shards: the number of shards of the parameter server.
      shard_backups: the number of backups of every shard, 0 or 1, on machines of their own.
      steps: the number of mini-batches of each replica; None: until the run's time is over.
      local_rule: the optax rule of a replica's own steps between fetches; None: the same as `rule`.
      n_fetch: the number of mini-batches between two fetches of parameters.
      n_push: the number of mini-batches between two pushes of accumulated gradients.
      overlap: whether a replica keeps computing while a fetch is in flight.
      warm_start_s: the time for which replica 0 trains alone, in seconds.
      warm_start_updates: the number of updates that replica 0 makes alone.

    Raises:
      ValueError: a value is out of its range, or replica 0 takes too few steps for the warm start.
    """

    local_rule: optax.GradientTransformation | None = None
    _: dataclasses.KW_ONLY
    n_fetch: int = bounded(1, at_least=1)
    n_push: int = bounded(1, at_least=1)
    overlap: bool = False
    warm_start_s: float = bounded(0.0, at_least=0)
    warm_start_updates: int = bounded(0, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = method_name(self)
        if math.isinf(self.warm_start_s):
            raise ValueError(
                f"{name}.warm_start_s=inf must be finite: the other replicas would never begin"
            )
        if self.steps is not None and self.steps < self.warm_start_updates * self.n_push:
            raise ValueError(
                f"{name}.steps={self.steps} must be enough for "
                f"warm_start_updates={self.warm_start_updates}; or None"
            )


async def client(
    node: Node, server: ShardServer, gradient_fn: GradientFn, batches: Stream, config: Config
) -> None:
    """Runs one model replica (Algorithm 1.1, DOWNPOURSGDCLIENT)."""
    replica = await ReplicaSession.join(node, server, session_options(config, batches))
    for step in replica.steps(config.steps):
        if step % config.n_fetch == 0:
            replica.start_fetch()  # STARTASYNCHRONOUSLYFETCHINGPARAMETERS
        params = await replica.parameters()
        batch = batches.at(step)  # GETNEXTMINIBATCH
        loss, gradient = await node.compute(gradient_fn, params, batch)  # COMPUTEGRADIENT
        replica.accumulate(gradient)  # accruedgradients += gradient
        replica.step_locally(gradient)  # parameters -= alpha * gradient
        del params, gradient  # so that each slice is freed when its shard has applied it
        if (step + 1) % config.n_push == 0:
            await replica.start_push()  # STARTASYNCHRONOUSLYPUSHINGGRADIENTS
        node.record(step=step, loss=loss)
    await replica.flush()


def session_options(
    config: Config, batches: Stream, push_bytes: Callable[[Slice], int] = slice_nbytes
) -> SessionOptions:
    """Returns how a replica communicates with the parameter server.

    Args:
      config: the configuration of the method.
      batches: the replica's mini-batches.
      push_bytes: see `SessionOptions`.
    """
    return SessionOptions(
        batches.batch_size,
        config.n_fetch,
        config.n_push,
        config.overlap,
        config.local_rule or config.rule,
        push_bytes,
    )


async def late_client(
    node: Node,
    client: Client,
    server: ShardServer,
    gradient_fn: GradientFn,
    batches: Stream,
    config: Config,
) -> None:
    """Runs any replica but the first: waits until the warm start is over (section 4.1).

    Args:
      node: the node that the replica runs on.
      client: the client to run afterwards.
      server: the parameter server.
      gradient_fn: the replica's gradient function.
      batches: the replica's mini-batches.
      config: the configuration of the method.
    """
    if node.saved_progress() is None:
        if node.now() < config.warm_start_s:
            await node.sleep(config.warm_start_s - node.now())
        if config.warm_start_updates:
            await server.broadcast(Shard.reached, config.warm_start_updates)
    await client(node, server, gradient_fn, batches, config)


def predicted_staleness_updates(config: Config) -> float | None:
    """Returns the mean staleness of a push, for M equally fast replicas that wait for fetches.

    If every fetch comes right after a push, every other replica pushes once in between: the
    staleness is M - 1 (proof 6). With n_push = 1 and less frequent fetches, the k-th push after a
    fetch comes after k - 1 more updates of each of the M replicas: M (n_fetch - 1) / 2 more on
    average.

    Args:
      config: the configuration of the method.

    Returns:
      The mean staleness, in updates of a shard; None where this law does not apply.
    """
    if config.overlap or config.n_push not in (1, config.n_fetch):
        return None
    rounds = (config.n_fetch - 1) / 2 if config.n_push == 1 else 0.0
    return config.replicas * (1 + rounds) - 1


def program(
    runtime: Runtime,
    task: Task,
    config: Config,
    restore: Restore | None = None,
    *,
    client: Client = client,
    shard: Callable[..., Shard] = Shard,
    shard_args: Sequence[Any] = (),
) -> Program:
    """Places Downpour SGD's shards and replicas on a runtime.

    A method that differs from Downpour SGD only in its client or its shards, and whose Config is a
    subclass of `Config`, calls this function with its own client or shard.

    Args:
      runtime: the runtime that they are placed on.
      task: the training task.
      config: the configuration of the method.
      restore: a function from the partition to the states with which the shards begin; None: they
        begin with the initial parameters.
      client: the coroutine function that each replica runs.
      shard: makes a shard: `Shard`, a subclass, or a function of the same arguments.
      shard_args: further arguments of its constructor, after the node, the slice and the server
        rule.

    Returns:
      The program, ready to run.

    Raises:
      ValueError: the rule cannot run on the shards, or the data has too few examples for the
        replicas.
    """
    return asynchronous(
        runtime,
        task,
        config,
        client,
        restore,
        shard=shard,
        shard_args=shard_args,
        late_client=late_client,
        pushes=PushTimes(config.n_push),
        predicted_staleness_updates=predicted_staleness_updates(config),
    )
