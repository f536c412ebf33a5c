"""The gradient of a replica's mini-batches, of parameters that are cut across shards."""

from __future__ import annotations

import functools
from typing import Any, final

import jax

from dbjax.parameter_server.partition import Partition
from dbjax.parameter_server.partitioned_gradient_fn import PartitionedGradientFn
from dbjax.types import Batch, LossFn, Slices, loss_of


@final
class GradientFn:
    """(slices, batch) -> (loss, slices of its gradient), compiled once for equal partitions.

    Cut leaves are joined, and their gradients cut, inside the compiled program: what travels are
    the shards' own arrays.

    Args:
      slices: their shapes and types, and those of a batch.
      on_devices: of a replica that is cut over devices; None: it is not.
    """

    def __init__(
        self,
        loss: LossFn,
        partition: Partition,
        slices: Slices,
        batch: Batch,
        on_devices: PartitionedGradientFn | None,
    ) -> None:
        self._made_of = (loss, partition, slices, batch, on_devices)
        self._compute = on_devices or _compiled(loss, partition)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is compiled anew."""
        return GradientFn, self._made_of

    def __call__(self, slices: Slices, batch: Batch) -> tuple[jax.Array, Slices]:
        found: tuple[jax.Array, Slices] = self._compute(slices, batch)
        return found

    def lower(self, slices: Slices, batch: Batch) -> jax.stages.Lowered:
        """The program of `__call__`."""
        return self._compute.lower(slices, batch)

    def compile_ahead(self) -> None:
        """For such slices and batches."""
        _, _, slices, batch, on_devices = self._made_of
        if on_devices:
            on_devices.compile_ahead(slices, batch)
        else:
            self.lower(slices, batch).compile()


@functools.lru_cache(maxsize=16)
def _compiled(loss: LossFn, partition: Partition) -> jax.stages.Wrapped:
    of_batch = jax.value_and_grad(functools.partial(loss_of, loss))

    @jax.jit
    def value_and_grad(slices: Slices, batch: Any) -> tuple[jax.Array, Slices]:
        value, gradient = of_batch(partition.join(slices), batch)
        return value, partition.split(gradient)

    return value_and_grad
