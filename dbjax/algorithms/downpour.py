"""Downpour SGD.

Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 and Algorithm 1.1.
Departures are listed in docs/algorithm.md.
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
    """Downpour SGD; see `AsynchronousConfig` for the other fields.

    Attributes:
      rule: the server rule: every shard applies it to the accumulated gradients it receives.
      local_rule: the rule of a replica's own steps between fetches; None: the same as `rule`.
      n_fetch: mini-batches between two fetches of parameters.
      n_push: mini-batches between two pushes of accumulated gradients.
      overlap: computation goes on while a fetch is under way, instead of waiting for it.
      warm_start_s: for how many seconds replica 0 trains alone.
      warm_start_updates: how many updates replica 0 makes alone.
    """

    local_rule: optax.GradientTransformation | None = None
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
                f"{name}.warm_start_s=inf must be finite: the others would never begin"
            )
        if self.steps is not None and self.steps < self.warm_start_updates * self.n_push:
            raise ValueError(
                f"{name}.steps={self.steps} must be enough for "
                f"warm_start_updates={self.warm_start_updates}; or None"
            )


async def client(
    node: Node, server: ShardServer, gradient_fn: GradientFn, batches: Stream, config: Config
) -> None:
    """Algorithm 1.1, DOWNPOURSGDCLIENT: one model replica."""
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
    """How a replica talks to the parameter server; see `SessionOptions`."""
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
    """Any replica but the first: waits until the warm start is over (section 4.1)."""
    if node.saved_progress() is None:
        if node.now() < config.warm_start_s:
            await node.sleep(config.warm_start_s - node.now())
        if config.warm_start_updates:
            await server.broadcast(Shard.reached, config.warm_start_updates)
    await client(node, server, gradient_fn, batches, config)


def predicted_staleness_updates(config: Config) -> float | None:
    """The mean staleness of a push of M equally fast replicas that wait for their fetches.

    When each fetch comes right after a push, every other replica pushes once in between: M - 1
    (proof 6). With n_push = 1 and fewer fetches, the k-th push after a fetch finds k - 1 more
    updates of each of the M replicas: M (n_fetch - 1) / 2 more on average.
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
    """Places shards and replicas on a runtime.

    A method that differs from Downpour SGD in its client or its shards, and whose Config is a
    subclass of `Config`, calls this with its own.

    Args:
      runtime: where they are placed.
      task: what is trained.
      config: the method's.
      restore: see `ParameterServer.serve`.
      client: what each replica runs.
      shard: the class of the shards.
      shard_args: what its constructor takes beside the node, its slice and the server rule.
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
        steps_per_push=config.n_push,
        predicted_staleness_updates=predicted_staleness_updates(config),
    )
