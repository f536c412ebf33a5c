"""The parameter server as its clients see it: shards on many nodes, addressed as one (section 4.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, final

import jax
import optax

from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.optim.inputs import initial
from dbjax.parameter_server.failover_client import serve_replicated
from dbjax.parameter_server.gradient_fn import GradientFn, PartitionedGradientFns, shapes_of
from dbjax.parameter_server.optimizer import server_rule, server_trees
from dbjax.parameter_server.partition import (
    Partition,
    compiled_split,
    partition_params,
    slice_nbytes,
)
from dbjax.parameter_server.shard import Snapshot
from dbjax.runtime.interface import Future, Handle, Runtime, all_of
from dbjax.types import Batch, LossFn, Params, Slices

S = TypeVar("S")
T = TypeVar("T")
M = TypeVar("M")
Restore = Callable[[Partition], Sequence[Any]]  # to the states of shards that have this partition
P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Parameters as served: one slice, with its own version, from each shard."""

    slices: Slices
    versions: tuple[int, ...]

    def skew_updates(self) -> int:
        """How many updates the shards are apart."""
        return max(self.versions) - min(self.versions)


@final
class ParameterServer(Generic[S]):
    """Services of class S, each holding one slice (of `nbytes`), addressed as one.

    Args:
      like: shapes and types of the slices.
    """

    def __init__(
        self,
        shards: Sequence[Handle[S]],
        partition: Partition,
        like: Slices,
        gradients: PartitionedGradientFns | None = None,
    ) -> None:
        self.shards, self.partition, self.like = tuple(shards), partition, like
        self.nbytes = tuple(map(slice_nbytes, like))
        self.gradients = gradients  # of replicas that are cut over devices

    @classmethod
    def serve(
        cls,
        runtime: Runtime,
        make: Callable[..., S],
        params: Params | Callable[[], Params],
        shards: int,
        /,
        *args: Any,
        name: str = "shard",
        backups: int = 0,
        sharding: ModelSharding | None = None,
        rule: optax.GradientTransformation | None = None,
        restore: Restore | None = None,
    ) -> ParameterServer[S]:
        """Places `make(node, slice, *args)` on nodes shard/0, shard/1, ...

        Where machines may die, calls wait for a shard to be there again, as the last checkpoint
        knew it; with a backup, on a node shard/0/backup, nothing is lost (`server.copy`).

        Args:
          backups: of every shard, 0 or 1.
          params: initial values, or a function that makes them: then only the shards keep them.
          cut: how each replica is cut over devices; slices follow it. None: it is not.
          rule: of shards that apply gradients: `make(node, slice, server_rule, *args)`.

        Raises:
          ValueError: the rule cannot run on these slices (`optim.require_elementwise`).
        """
        params = initial(params)
        partition = partition_params(params, shards, Layout(sharding, params) if sharding else None)
        slices = compiled_split(partition)(params)
        if sharding:  # as what devices push is: rules are compiled for such arrays
            slices = jax.tree.map(lambda piece: jax.device_put(piece, piece.sharding), slices)
        gradients = PartitionedGradientFns(sharding, params, partition) if sharding else None
        if rule is not None:
            args = (server_rule(rule, server_trees(rule, partition, slices)), *args)
        del params  # of leaves that are cut the slices are copies
        if restore is not None:
            states = enumerate(restore(partition))
            runtime.latest_states = {f"{name}/{i}": state for i, state in states}
        handles = [
            serve_replicated(runtime, f"{name}/{i}", backups, make, slice_, *args)
            for i, slice_ in enumerate(slices)
        ]
        return cls(handles, partition, shapes_of(slices), gradients)

    def broadcast(
        self, method: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[list[T]]:
        """Calls every shard with the same arguments; lists their replies."""
        return all_of([s.call(method, *args, **kwargs) for s in self.shards], list)

    def fetch(
        self, method: Callable[Concatenate[S, P], Snapshot], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[Fetched]:
        """Calls every shard for its slice."""
        return all_of([s.call(method, *args, **kwargs) for s in self.shards], _fetched)

    def push(self, method: Callable[[S, M], T], messages: Iterable[M]) -> Future[list[T]]:
        """Sends each shard its own message; lists their replies."""
        return all_of(self._scatter(method, messages), list)

    def push_and_fetch(
        self, method: Callable[[S, M], Future[Snapshot]], messages: Iterable[M]
    ) -> Future[Fetched]:
        """Sends each shard its own message; the replies are the new slices."""
        return all_of(self._scatter(method, messages), _fetched)

    def gradients_of(self, loss: LossFn, batch: Batch, replicas: int) -> list[GradientFn]:
        """For each replica the gradient of its mini-batches, all of which are like `batch`.

        Replicas that are cut over devices run on their own ones, and the loss is the cut's. Those
        on the same devices have the same one.
        """
        devices = [self.gradients.of(r) if self.gradients else None for r in range(replicas)]
        made = {
            on: GradientFn(loss, self.partition, self.like, batch, on)
            for on in dict.fromkeys(devices)
        }
        return [made[on] for on in devices]

    def replica_devices(self) -> dict[str, int] | None:
        """How many devices a replica is cut over, and what each fetches from how many shards."""
        return self.gradients.report() if self.gradients else None

    def _scatter(self, method: Callable[[S, M], Any], messages: Iterable[M]) -> list[Future[Any]]:
        pairs = zip(self.shards, messages, strict=True)
        return [shard.call(method, message) for shard, message in pairs]


def _fetched(snapshots: list[Snapshot]) -> Fetched:
    return Fetched(tuple(s.params for s in snapshots), tuple(s.version for s in snapshots))
