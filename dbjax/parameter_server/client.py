"""The parameter server as its clients see it: shards on many nodes, addressed as one.

Paper: section 4.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, final

import jax
import optax

from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.optim.inputs import initial
from dbjax.parameter_server.abstract import (
    AbstractGradientFn,
    AbstractLocalOptimizer,
    AbstractRule,
    ArithmeticRecorder,
    DependsOnValues,
)
from dbjax.parameter_server.failover_client import serve_replicated
from dbjax.parameter_server.gradient_fn import GradientFn, PartitionedGradientFns, shapes_of
from dbjax.parameter_server.optimizer import LocalOptimizer, checked_trees, server_rule
from dbjax.parameter_server.partition import (
    Partition,
    compiled_split,
    partition_params,
    shards_of_process,
    slice_nbytes,
)
from dbjax.parameter_server.shard import Snapshot
from dbjax.runtime.interface import Future, Handle, Runtime, SavedState, all_of
from dbjax.runtime.joint import least
from dbjax.types import Batch, LossFn, Params, Slices

S = TypeVar("S")
T = TypeVar("T")
M = TypeVar("M")
Restore = Callable[[Partition], Sequence[Any]]  # partition of a new run -> a state for each shard
P = ParamSpec("P")


class Fetched(NamedTuple):
    """Parameters as the shards served them: a slice with its own version from each shard.

    Attributes:
      slices: the parameters, a slice for each shard.
      versions: for each shard, the version of its slice (see `Snapshot`).
    """

    slices: Slices
    versions: tuple[int, ...]


@final
class ParameterServer(Generic[S]):
    """Addresses the shards, services of class S that hold one slice each, as one server.

    Args:
      shards: handles of the shards.
      partition: the partition of the parameters into slices.
      like: the shapes and dtypes of the slices.
      gradients: the gradient functions of model-parallel replicas; None: no model parallelism.

    Attributes:
      nbytes: the size of each slice, in bytes.
      names: the names of the shards.
      joint: whether other processes of a replica have the other shards (see `of_process`).
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
        self.names = tuple(shard.name for shard in self.shards)
        self.gradients = gradients
        self.joint = False
        self._recorder: ArithmeticRecorder | None = None

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
        spans: bool = False,
        rule: optax.GradientTransformation | None = None,
        restore: Restore | None = None,
    ) -> ParameterServer[S]:
        """Places shards, `make(node, slice, *args)`, on nodes shard/0, shard/1, ...

        Where nodes can fail, a call waits until the shard has come back with the state of the
        latest checkpoint. With a backup, on a node shard/0/backup, no update is lost
        (`parameter_server.replication`).

        Args:
          runtime: the runtime that the shards are placed on.
          make: the class of the shards, or a function that makes one.
          params: the initial parameters, or a function that returns them; with a function, only
            the shards keep them in memory.
          shards: the number of shards.
          *args: further arguments of `make`.
          name: the prefix of the nodes' names.
          backups: the number of backups of every shard, 0 or 1.
          sharding: how each replica is sharded over devices, which the slices then follow; None:
            no model parallelism.
          spans: whether the caller starts as many processes for each replica as the sharding says.
          rule: the optax rule of shards that apply gradients; they are then made by
            `make(node, slice, server_rule, *args)`.
          restore: a function from the partition to the states with which the shards begin; None:
            they begin with `params`.

        Returns:
          The parameter server.

        Raises:
          TypeError: a leaf of the parameters is not an array of floats.
          ValueError: there are too many shards for the parameters, or replicas may not span
            processes, or the rule cannot run on the slices (`optim.require_elementwise`).
        """
        if sharding and sharding.processes > 1 and not spans:
            raise ValueError(
                f"ModelSharding.processes={sharding.processes} is for methods whose replicas push "
                "independently of each other, such as downpour; use processes=1"
            )
        if runtime.recorder is not None:
            return cls._recorded(runtime, make, params, shards, args, name, backups, sharding, rule)
        params = initial(params)
        partition = partition_params(params, shards, Layout(sharding, params) if sharding else None)
        slices = compiled_split(partition)(params)
        if sharding:  # devices push arrays of this kind, for which rules are to be compiled
            slices = jax.tree.map(lambda piece: jax.device_put(piece, piece.sharding), slices)
        gradients = PartitionedGradientFns(sharding, params, partition) if sharding else None
        if rule is not None:
            args = (server_rule(rule, checked_trees(rule, partition, slices)), *args)
        del params  # frees memory: the slices of a partitioned leaf are copies
        if restore is not None:
            states = enumerate(restore(partition))
            runtime.latest_states = {f"{name}/{i}": SavedState(state) for i, state in states}
        handles = [
            serve_replicated(runtime, f"{name}/{i}", backups, make, slice_, *args)
            for i, slice_ in enumerate(slices)
        ]
        return cls(handles, partition, shapes_of(slices), gradients)

    @classmethod
    def _recorded(
        cls,
        runtime: Runtime,
        make: Callable[..., S],
        params: Params | Callable[[], Params],
        shards: int,
        args: tuple[Any, ...],
        name: str,
        backups: int,
        sharding: ModelSharding | None,
        rule: optax.GradientTransformation | None,
    ) -> ParameterServer[S]:
        """Does what `serve` does, with slices without values (`parameter_server.abstract`)."""
        recorder: ArithmeticRecorder = runtime.recorder
        if sharding is not None or rule is None:
            raise DependsOnValues("its replicas are sharded over devices, or it has no server rule")
        shapes = jax.eval_shape(lambda: initial(params))
        partition = partition_params(shapes, shards)
        like = jax.eval_shape(partition.split, shapes)
        real = server_rule(rule, checked_trees(rule, partition, like))
        states = [_nbytes(jax.eval_shape(real.init, slice_)) for slice_ in like]
        abstract = AbstractRule(recorder, rule, states)
        handles = [
            serve_replicated(runtime, f"{name}/{i}", backups, make, slice_, abstract, *args)
            for i, slice_ in enumerate(recorder.params(list(map(slice_nbytes, like))))
        ]
        server = cls(handles, partition, like)
        server._recorder = recorder
        return server

    def local_optimizer(
        self, rule: optax.GradientTransformation
    ) -> LocalOptimizer | AbstractLocalOptimizer:
        """Returns what applies a rule to a replica's own parameters, between fetches."""
        if self._recorder is not None:
            return AbstractLocalOptimizer(self._recorder, rule)
        return LocalOptimizer(rule, self.partition)

    def broadcast(
        self, method: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[list[T]]:
        """Calls a method of every shard with the same arguments.

        Args:
          method: the method of the shards' class.
          *args: its positional arguments.
          **kwargs: its keyword arguments.

        Returns:
          A future of the list of the shards' replies.
        """
        return all_of([s.call(method, *args, **kwargs) for s in self.shards], list)

    def fetch(
        self, method: Callable[Concatenate[S, P], Snapshot], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[Fetched]:
        """Fetches every shard's slice.

        Args:
          method: the method of the shards' class that returns a `Snapshot`.
          *args: its positional arguments.
          **kwargs: its keyword arguments.

        Returns:
          A future of the slices and their versions.
        """
        return all_of([s.call(method, *args, **kwargs) for s in self.shards], _fetched)

    def push(self, method: Callable[[S, M], T], messages: Iterable[M]) -> Future[list[T]]:
        """Sends each shard its own message.

        Args:
          method: the method of the shards' class that takes the message.
          messages: one message for each shard, in order.

        Returns:
          A future of the list of the shards' replies.
        """
        return all_of(self._scatter(method, messages), list)

    def push_and_fetch(
        self, method: Callable[[S, M], Future[Snapshot]], messages: Iterable[M]
    ) -> Future[Fetched]:
        """Sends each shard its own message, and receives its new slice in reply.

        Args:
          method: the method of the shards' class that takes the message and returns a `Snapshot`.
          messages: one message for each shard, in order.

        Returns:
          A future of the slices and their versions.
        """
        return all_of(self._scatter(method, messages), _fetched)

    def gradients_of(self, loss: LossFn, batch: Batch, replicas: int) -> list[GradientFn]:
        """Returns the gradient function of each replica.

        With model parallelism, each replica runs on its own devices, and computes the loss of the
        `ModelSharding`; replicas that share devices also share a gradient function.

        Args:
          loss: (params, batch) -> the loss, a scalar.
          batch: a mini-batch; all mini-batches have its shapes and dtypes.
          replicas: the number of replicas.
        """
        if (recorder := self._recorder) is not None:
            recorder.loss = loss
            real = GradientFn(loss, self.partition, self.like, batch, None)
            types = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
            lower = functools.partial(real.lower, self.like, batch)
            found: Any = [
                AbstractGradientFn(recorder, r, real.program, types, lower) for r in range(replicas)
            ]
            return found  # type: ignore[no-any-return]
        devices = [self.gradients.of(r) if self.gradients else None for r in range(replicas)]
        made = {
            on: GradientFn(loss, self.partition, self.like, batch, on)
            for on in dict.fromkeys(devices)
        }
        return [made[on] for on in devices]

    def of_process(self, process: int) -> ParameterServer[S]:
        """Returns the server as one process of a replica sees it: the shards that hold its part.

        Args:
          process: the index of the process.
        """
        assert self.gradients is not None
        processes = self.gradients.processes
        mine = ParameterServer(
            shards_of_process(self.shards, process, processes),
            self.partition.of_process(process, processes),
            shards_of_process(self.like, process, processes),
            self.gradients,
        )
        mine.joint = processes > 1
        return mine

    def least(self, values: Iterable[int]) -> int:
        """Returns the least of the shards' values, also of those of a replica's other processes.

        Args:
          values: a value of each shard.
        """
        return least(min(values)) if self.joint else min(values)

    def replica_devices(self) -> dict[str, int] | None:
        """Returns the number of devices of a replica, and each device's share of the traffic.

        Returns:
          `count`: the number of devices; `shards_each`: the largest number of shards that a device
          communicates with; `fetched_bytes_each`: the most bytes that a device fetches. None
          without model parallelism.
        """
        return self.gradients.report() if self.gradients else None

    def _scatter(self, method: Callable[[S, M], Any], messages: Iterable[M]) -> list[Future[Any]]:
        pairs = zip(self.shards, messages, strict=True)
        return [shard.call(method, message) for shard, message in pairs]


def _nbytes(shapes: Any) -> int:
    """Returns the size of arrays of these shapes and dtypes, in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _fetched(snapshots: list[Snapshot]) -> Fetched:
    return Fetched(tuple([s.params for s in snapshots]), tuple([s.version for s in snapshots]))
