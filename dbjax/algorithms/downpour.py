"""Downpour SGD.

Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1 and Algorithm 1.1.
Departures are listed in docs/algorithm.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import optax

from dbjax.algorithms.local_optimizer import LocalOptimizer
from dbjax.data.stream import Stream
from dbjax.optim.inputs import as_rule
from dbjax.parameter_server import (
    AccumulatedGradient,
    Fetched,
    ParameterServer,
    Shard,
    require_backups,
)
from dbjax.runtime.interface import Future, Node, Runtime, ready
from dbjax.task import Program, Task, require_config


@dataclasses.dataclass(frozen=True)
class Config:
    """Downpour SGD.

    Attributes:
      rule: server rule, applied by every shard to the accrued gradients it receives.
      local_rule: rule of a replica's own steps between fetches; None: as `rule`.
      replicas: model replicas, each on its own part of the training data.
      shards: of the parameter server.
      shard_backups: copies of every shard on machines of their own, 0 or 1.
      n_fetch: mini-batches between two fetches of parameters.
      n_push: mini-batches between two pushes of accrued gradients.
      overlap: go on computing while a fetch is under way, instead of waiting for it.
      steps: mini-batches of each replica; None: until the run's time is over.
      warm_start_s: time for which replica 0 trains alone.
      warm_start_updates: updates that replica 0 makes alone.
    """

    rule: optax.GradientTransformation = optax.sgd(0.05)
    local_rule: optax.GradientTransformation | None = None
    replicas: int = 8
    shards: int = 3
    shard_backups: int = 0
    n_fetch: int = 1
    n_push: int = 1
    overlap: bool = False
    steps: int | None = None
    warm_start_s: float = 0.0
    warm_start_updates: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", as_rule("downpour.rule", self.rule))
        local_rule = as_rule("downpour.local_rule", self.local_rule, or_none=True)
        object.__setattr__(self, "local_rule", local_rule)
        require_config(
            "downpour",
            self,
            at_least_one=("replicas", "shards", "n_fetch", "n_push"),
            at_least_zero=("warm_start_s", "warm_start_updates"),
        )
        if math.isinf(self.warm_start_s):
            raise ValueError(
                "downpour.warm_start_s=inf must be finite: the others would never begin"
            )
        require_backups("downpour", self.shard_backups)
        if self.steps is not None and self.steps < max(1, self.warm_start_updates * self.n_push):
            raise ValueError(
                f"downpour.steps={self.steps} must be at least 1, and enough for "
                f"warm_start_updates={self.warm_start_updates}; or None"
            )


def predicted_staleness_updates(config: Config) -> float | None:
    """Mean staleness of a push among M equally fast replicas that wait for their fetches.

    When each fetch comes right after a push, every other replica pushes once in between:
    M - 1 (proof 6). With n_push = 1 and fewer fetches, the k-th push after a fetch finds
    k - 1 more updates of each of the M replicas: M (n_fetch - 1) / 2 more in the mean.
    """
    if config.overlap or config.n_push not in (1, config.n_fetch):
        return None
    rounds = (config.n_fetch - 1) / 2 if config.n_push == 1 else 0.0
    return config.replicas * (1 + rounds) - 1


def acknowledged(
    config: Config, processes: Sequence[Future[Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, int]:
    """How many pushes of each replica all shards have answered; its last may be on its way."""
    found: dict[str, int] = {}
    for r, main in enumerate(processes):
        if config.steps is not None and main.done() and main.error() is None:
            found[f"replica/{r}"] = -(-config.steps // config.n_push)
    for row in rows:
        if "step" in row:
            before = (row["step"] + 1) // config.n_push - 1
            found[row["node"]] = max(found.get(row["node"], 0), before)
    return found


async def client(
    node: Node,
    server: ParameterServer[Shard],
    gradient_fn: Callable[..., Any],
    batches: Stream,
    config: Config,
) -> None:
    """Algorithm 1.1: DOWNPOURSGDCLIENT, of one replica."""
    local = LocalOptimizer(config.local_rule or config.rule, server.partition)
    accrued = AccumulatedGradient()
    params: Fetched | None = None
    fetching: Future[Fetched] | None = None
    pushing: Future[Any] = ready(None)
    if (kept := node.saved_progress()) is not None:  # the run is taken up exactly where it stood
        step, pushes, params, accrued, fetching, pushing, local.state = kept
    else:  # one that comes back from the dead goes on where the shards knew it last
        pushes = min(await server.broadcast(Shard.pushed, node.name)) if node.incarnation else 0
        step = pushes * config.n_push
    while config.steps is None or step < config.steps:
        node.save_progress((step, pushes, params, accrued, fetching, pushing, local.state))
        if fetching is not None and await node.is_done(fetching):  # meanwhile
            params, fetching = fetching.result(), None
        if fetching is None and (params is None or step % config.n_fetch == 0):
            fetching = server.fetch(Shard.fetch, node.name)  # StartAsynchronouslyFetchingParameters
        if fetching is not None and (params is None or not config.overlap):
            params, fetching = await fetching, None
        assert params is not None  # the first fetch is awaited
        batch = batches.at(step)  # GetNextMinibatch
        loss, gradient = await node.compute(gradient_fn, params.slices, batch)  # ComputeGradient
        accrued = accrued.plus(gradient, params.versions, batches.batch_size)
        if config.overlap or (step + 1) % config.n_fetch:
            params = local.step(params, gradient)
        else:
            params = None  # the next fetch replaces it: nobody needs the old slices
        del gradient  # so that each piece is freed when its shard has applied it
        if (step + 1) % config.n_push == 0:
            await pushing  # one push in flight at most
            messages, accrued = accrued.messages(node.name, pushes), AccumulatedGradient()
            pushing, pushes = server.push(Shard.push, messages), pushes + 1
        node.record(step=step, loss=loss)
        step += 1
    await pushing
    if accrued.gradient is not None:
        await server.push(Shard.push, accrued.messages(node.name, pushes))


async def late_client(
    node: Node,
    server: ParameterServer[Shard],
    gradient_fn: Callable[..., Any],
    batches: Stream,
    config: Config,
) -> None:
    """Any replica but the first: waits for the warm start to be over (section 4.1)."""
    if node.saved_progress() is None:
        if node.now() < config.warm_start_s:
            await node.sleep(config.warm_start_s - node.now())
        if config.warm_start_updates:
            await server.broadcast(Shard.reached, config.warm_start_updates)
    await client(node, server, gradient_fn, batches, config)


def program(runtime: Runtime, task: Task, config: Config) -> Program:
    """Places shards and replicas on a runtime."""
    streams = [task.batches(r, config.replicas) for r in range(config.replicas)]
    server = ParameterServer.serve(
        runtime,
        Shard,
        task.start,
        config.shards,
        backups=config.shard_backups,
        sharding=task.sharding,
        rule=config.rule,
    )
    gradients = server.gradients_of(task.loss, task.batch, config.replicas)
    processes = [
        runtime.spawn(
            f"replica/{r}",
            late_client if r else client,
            server,
            gradient,
            stream,
            config,
        )
        for r, (gradient, stream) in enumerate(zip(gradients, streams, strict=True))
    ]
    return Program(
        server,
        Shard,
        tuple(processes),
        predicted_staleness_updates(config),
        acknowledged=functools.partial(acknowledged, config, processes),
    )
