"""A `Program`: the shards and processes that an algorithm places on a runtime.

This module also exports everything else that the module of an algorithm needs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import optax

from dbjax.arguments import require_fields
from dbjax.data.stream import Stream as Stream
from dbjax.optim.inputs import as_rule as as_rule
from dbjax.parameter_server.client import Fetched as Fetched
from dbjax.parameter_server.client import ParameterServer as ParameterServer
from dbjax.parameter_server.client import Restore as Restore
from dbjax.parameter_server.failover_client import require_backups as require_backups
from dbjax.parameter_server.gated_shard import GatedShard as GatedShard
from dbjax.parameter_server.gradient_fn import GradientFn as GradientFn
from dbjax.parameter_server.optimizer import ServerRule as ServerRule
from dbjax.parameter_server.optimizer import checked_trees
from dbjax.parameter_server.partition import compiled_join
from dbjax.parameter_server.replica_process import replica_process
from dbjax.parameter_server.session import ReplicaSession as ReplicaSession
from dbjax.parameter_server.session import SessionOptions as SessionOptions
from dbjax.parameter_server.shard import Push as Push
from dbjax.parameter_server.shard import Report as Report
from dbjax.parameter_server.shard import Shard as Shard
from dbjax.parameter_server.shard import Snapshot as Snapshot
from dbjax.runtime.interface import Future as Future
from dbjax.runtime.interface import Node as Node
from dbjax.runtime.interface import Runtime as Runtime
from dbjax.runtime.node_names import member_name
from dbjax.runtime.node_names import replica_name as replica_name
from dbjax.runtime.trace import Row
from dbjax.task import Task as Task
from dbjax.types import Params
from dbjax.types import Slice as Slice
from dbjax.types import Slices as Slices

ShardServer = ParameterServer[Shard]
Client = Callable[[Node, ShardServer, GradientFn, Stream, Any], Coroutine[Any, Any, None]]


class ParameterShard(Protocol):
    """The methods of a shard that observers call, whatever the algorithm."""

    def peek(self) -> Snapshot:
        """Returns the shard's parameters with their version, without counting a fetch."""

    def report(self) -> Report:
        """Returns what the shard has counted so far."""

    def checkpoint(self) -> Any:
        """Returns the state from which the shard can be restored."""


@dataclasses.dataclass(frozen=True)
class Program:
    """An algorithm that was placed on a runtime.

    Attributes:
      server: the parameter server, which holds the parameters.
      shard: the class of the server's shards.
      processes: the ends of the spawned processes; the run ends when all of them are done.
      predicted_staleness_updates: the mean staleness of a push when all replicas are equally fast,
        in updates of a shard; None: no formula is known.
      summarise: a function from the rows of a run to further entries of its summary.
      acknowledged: a function from the rows of a run to the number of acknowledged pushes of each
        replica, by the replica's name.
      recent_losses: the number of latest losses whose mean is the metric `train_loss`.
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
        """A compiled function that joins the shards' slices to the parameters."""
        return compiled_join(self.server.partition)


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declares a numeric field of a Config, with bounds that `require_config` checks.

    Args:
      default: the default value of the field.
      at_least: the smallest value that is allowed; None: no such bound. Likewise below.
      above: a value that the field must exceed.
      at_most: the largest value that is allowed.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most}
    return dataclasses.field(default=default, metadata={"bounds": bounds})


_HOLDS: dict[str, Callable[[Any, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
}


def require_config(config: Any) -> None:
    """Checks the types of a Config's fields, and the bounds of those that have any.

    Raises:
      ValueError: a value is wrong; the error names the algorithm, the field and the value.
    """
    name = method_name(config)
    require_fields(name, config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for words, bound in field.metadata.get("bounds", {}).items():
            if None not in (value, bound) and not _HOLDS[words](value, bound):
                raise ValueError(f"{name}.{field.name}={value} must be {words} {bound}")


def method_name(config: Any) -> str:
    """Returns the name of a Config's algorithm: of its module, or of its folder in dbjax."""
    module = type(config).__module__
    own = module.removeprefix("dbjax.algorithms.")
    return own.partition(".")[0] if own != module else module.rpartition(".")[2]


@dataclasses.dataclass(frozen=True)
class AsynchronousConfig:
    """The base class of the Configs of methods whose replicas push independently of each other.

    Every field that holds an optax rule is checked, whatever its name.

    Attributes:
      rule: the optimizer to tune. It runs on the server or, in methods whose replicas optimise
        locally, on the replicas.
      replicas: the number of model replicas, each with its own part of the training data.
      shards: the number of shards of the parameter server.
      shard_backups: the number of backup copies of every shard, each on its own machine: 0 or 1.
      steps: the number of mini-batches that each replica computes; None: unlimited, so the run
        ends at its `until_s`.
    """

    rule: optax.GradientTransformation = optax.sgd(0.05)
    _: dataclasses.KW_ONLY
    replicas: int = bounded(8, at_least=1)
    shards: int = bounded(3, at_least=1)
    shard_backups: int = 0
    steps: int | None = bounded(None, at_least=1)

    def __post_init__(self) -> None:
        name = method_name(self)
        for field in _rule_fields(self):
            optional = any(word in str(field.type) for word in ("None", "Optional"))
            rule = as_rule(f"{name}.{field.name}", getattr(self, field.name), or_none=optional)
            object.__setattr__(self, field.name, rule)
        require_config(self)
        require_backups(name, self.shard_backups)


def _rule_fields(config: AsynchronousConfig) -> list[dataclasses.Field[Any]]:
    """Returns the fields of a Config that hold an optax rule."""
    return [f for f in dataclasses.fields(config) if "GradientTransformation" in str(f.type)]


@dataclasses.dataclass(frozen=True)
class PushTimes:
    """When a replica pushes: once for every few steps, and once more for the rest at its end.

    Attributes:
      every: the number of steps between two pushes.
      after: how many more steps it takes before it makes a push that is due.
    """

    every: int = 1
    after: int = 0

    def in_all(self, steps: int) -> int:
        """Returns the number of pushes of a replica that has ended after so many steps."""
        return -(-steps // self.every)

    def acknowledged(self, steps: int) -> int:
        """Returns the number of pushes that are certain to be acknowledged after so many steps.

        The last one may still be on its way.
        """
        return max(0, (steps - self.after) // self.every - 1)


def asynchronous(
    runtime: Runtime,
    task: Task,
    config: AsynchronousConfig,
    client: Client,
    restore: Restore | None = None,
    *,
    rule: optax.GradientTransformation | None = None,
    shard: Callable[..., Shard] = Shard,
    shard_args: Sequence[Any] = (),
    late_client: Callable[..., Coroutine[Any, Any, None]] | None = None,
    pushes: PushTimes | None = None,
    predicted_staleness_updates: float | None = None,
) -> Program:
    """Places a method whose replicas push to the shards independently of each other.

    Args:
      runtime: the runtime on which the method is placed.
      task: the task to train.
      config: the Config of the method.
      client: the coroutine function that every replica runs, `client(node, server, gradient_fn,
        mini_batches, config)`.
      restore: the states to begin with, see `ParameterServer.serve`; None: the initial ones.
      rule: the server rule, which every shard applies to the pushes it receives; None:
        `config.rule`.
      shard: makes a shard: `Shard`, a subclass, or a function of the same arguments.
      shard_args: further arguments of that class, after the node, the slice and the server rule.
      late_client: the coroutine function that every replica but the first runs instead, so that
        it may start later: `late_client(node, client, *arguments of the client)`; None: all
        replicas run `client`.
      pushes: when a replica pushes; None: after every step.
      predicted_staleness_updates: see `Program`.

    Returns:
      The program; its replicas start when the runtime runs.

    Raises:
      ValueError: the rule cannot run on the shards, or there is too little data for the replicas.
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
        spans=True,
        rule=config.rule if rule is None else rule,
        restore=restore,
    )
    gradient_fns = server.gradients_of(task.loss, task.batch, config.replicas)
    count, pushes = task.sharding.processes if task.sharding else 1, pushes or PushTimes()
    if count > 1:
        pushes = dataclasses.replace(pushes, after=pushes.after + 1)  # another process may be later
        for field in _rule_fields(config):  # each process takes local steps on its own part
            if (own := getattr(config, field.name)) is not None:
                checked_trees(own, server.partition, server.like)
    replicas = []
    for r, (gradient_fn, stream) in enumerate(zip(gradient_fns, streams, strict=True)):
        main: Callable[..., Coroutine[Any, Any, None]] = client
        if r and late_client is not None:
            main = functools.partial(_run_late, late_client, client)
        replicas.append(_spawn(runtime, r, count, main, server, gradient_fn, stream, config))
    return Program(
        server,
        Shard,
        tuple(itertools.chain.from_iterable(replicas)),
        predicted_staleness_updates,
        acknowledged=functools.partial(_acknowledged_pushes, config.steps, pushes, replicas),
    )


def _run_late(late_client: Any, client: Client, node: Node, *args: Any) -> Any:
    return late_client(node, client, *args)


def _spawn(
    runtime: Runtime, replica: int, processes: int, main: Callable[..., Any], *args: Any
) -> list[Future[None]]:
    """Starts the processes of a replica, and returns their ends."""
    name = replica_name(replica)
    if processes == 1:
        return [runtime.spawn(name, main, *args)]
    names = [member_name(replica, process) for process in range(processes)]
    return runtime.spawn_group(names, replica_process, name, main, *args)


def _acknowledged_pushes(
    steps: int | None,
    pushes: PushTimes,
    replicas: Sequence[Sequence[Future[Any]]],
    rows: Sequence[Row],
) -> dict[str, int]:
    """Counts the pushes of each replica that all shards are certain to have acknowledged."""
    found: dict[str, int] = {}
    for r, processes in enumerate(replicas):
        if steps is not None and all(p.done() and p.error() is None for p in processes):
            found[replica_name(r)] = pushes.in_all(steps)
    for row in rows:
        if "step" in row:
            acknowledged = pushes.acknowledged(row["step"] + 1)
            found[row["node"]] = max(found.get(row["node"], 0), acknowledged)
    return found
