"""What an algorithm places on a runtime: its shards, its processes, and what is known of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import optax

from dbjax.arguments import require_at_least, require_fields
from dbjax.data.stream import Stream
from dbjax.parameter_server.client import ParameterServer, Restore
from dbjax.parameter_server.gradient_fn import GradientFn
from dbjax.parameter_server.partition import compiled_join
from dbjax.parameter_server.shard import Report, Shard, Snapshot
from dbjax.runtime.interface import Future, Node, Runtime
from dbjax.runtime.node_names import replica_name
from dbjax.runtime.trace import Row
from dbjax.task import Task
from dbjax.types import Params, Slices

ShardServer = ParameterServer[Shard]
Client = Callable[[Node, ShardServer, GradientFn, Stream, Any], Coroutine[Any, Any, None]]


class ParameterShard(Protocol):
    """What an observer may ask of whatever serves parameters."""

    def peek(self) -> Snapshot: ...
    def report(self) -> Report: ...
    def checkpoint(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Program:
    """An algorithm in its place.

    Attributes:
      server: where its parameters are.
      shard: the class of the server's shards.
      processes: what was spawned; the run ends when all of them have ended.
      predicted_staleness_updates: the mean staleness of a push when all replicas are equally fast,
        in updates of a shard; None where no law is known.
      summarise: from the rows of a run, what else belongs into its summary.
      acknowledged: from the rows of a run, how many pushes of each replica were answered.
      recent_losses: how many of the latest losses `train_loss` is the mean of.
    """

    server: ParameterServer[Any]
    shard: type[ParameterShard]
    processes: tuple[Future[Any], ...]
    predicted_staleness_updates: float | None = None
    summarise: Callable[[Sequence[Row]], Row] = lambda rows: {}
    acknowledged: Callable[[Sequence[Row]], dict[str, int]] = lambda rows: {}
    recent_losses: int = 100

    @property
    def join(self) -> Callable[[Slices], Params]:
        """Puts the shards' slices together; compiled."""
        return compiled_join(self.server.partition)


def require_config(
    name: str, config: Any, *, at_least_one: Sequence[str], at_least_zero: Sequence[str] = ()
) -> None:
    """Raises ValueError for the first field of a Config that has a wrong type, or is too small.

    Args:
      name: the algorithm's.
      config: a dataclass.
      at_least_one: names of fields.
      at_least_zero: names of fields.
    """
    require_fields(name, config)
    for least, fields in ((1, at_least_one), (0, at_least_zero)):
        require_at_least(name, least, **{field: getattr(config, field) for field in fields})


class AsynchronousConfig(Protocol):
    """What `asynchronous` reads of an algorithm's Config."""

    @property
    def replicas(self) -> int: ...
    @property
    def shards(self) -> int: ...
    @property
    def shard_backups(self) -> int: ...
    @property
    def steps(self) -> int | None: ...


def asynchronous(
    runtime: Runtime,
    task: Task,
    config: AsynchronousConfig,
    client: Client,
    *,
    rule: optax.GradientTransformation,
    restore: Restore | None = None,
    shard: Callable[..., Shard] = Shard,
    shard_args: Sequence[Any] = (),
    late_client: Callable[..., Coroutine[Any, Any, None]] | None = None,
    steps_per_push: int = 1,
    predicted_staleness_updates: float | None = None,
) -> Program:
    """Places a method whose replicas push to the shards independently of each other.

    Args:
      runtime: where it is placed.
      task: what is trained.
      config: the method's.
      client: what every replica runs: (node, server, gradient function, mini-batches, config).
      rule: the server rule, which every shard applies to the gradients it receives.
      restore: see `ParameterServer.serve`.
      shard: the class of the shards, `Shard` or a subclass.
      shard_args: what its constructor takes beside the node, its slice and the server rule.
      late_client: what replicas other than the first run: (node, client, and its arguments);
        None: the client at once.
      steps_per_push: mini-batches between two pushes of a replica.
      predicted_staleness_updates: see `Program`.

    Raises:
      ValueError: the rule cannot run on the shards, or the data is too little for the replicas.
    """
    streams = [task.batches(r, config.replicas) for r in range(config.replicas)]
    server: ShardServer = ParameterServer.serve(
        runtime,
        shard,
        task.start,
        config.shards,
        *shard_args,
        backups=config.shard_backups,
        sharding=task.sharding,
        rule=rule,
        restore=restore,
    )
    gradient_fns = server.gradients_of(task.loss, task.batch, config.replicas)
    processes = []
    for r, (gradient_fn, stream) in enumerate(zip(gradient_fns, streams, strict=True)):
        given = server, gradient_fn, stream, config
        if r and late_client is not None:
            process = runtime.spawn(replica_name(r), late_client, client, *given)
        else:
            process = runtime.spawn(replica_name(r), client, *given)
        processes.append(process)
    return Program(
        server,
        Shard,
        tuple(processes),
        predicted_staleness_updates,
        acknowledged=functools.partial(
            _acknowledged_pushes, config.steps, steps_per_push, processes
        ),
    )


def _acknowledged_pushes(
    steps: int | None, steps_per_push: int, processes: Sequence[Future[Any]], rows: Sequence[Row]
) -> dict[str, int]:
    """How many pushes of each replica all shards have answered; its last may be on its way."""
    found: dict[str, int] = {}
    for r, process in enumerate(processes):
        if steps is not None and process.done() and process.error() is None:
            found[replica_name(r)] = -(-steps // steps_per_push)
    for row in rows:
        if "step" in row:
            before = (row["step"] + 1) // steps_per_push - 1
            found[row["node"]] = max(found.get(row["node"], 0), before)
    return found
