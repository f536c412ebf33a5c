"""A model replica of Sandblaster: computes portions, sends sums of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from dbjax.parameter_server.client import ParameterServer
from dbjax.parameter_server.gradient_sums import DeferredSum, GradientSum, add_sums
from dbjax.parameter_server.vector_shard import Contribution, VectorShard
from dbjax.runtime.interface import Future, Node, ready
from dbjax.types import Slices

PortionGradient = Callable[[Slices, tuple[int, ...], int], GradientSum | DeferredSum]


@final
class Replica:
    """REPLICA of Algorithm 1.2. What it knows dies with it, and is computed again.

    Args:
      gradient: (parameters, portions, examples in the batch) -> their share of its sum.
      read_ahead: is told which portion probably comes next.
    """

    def __init__(
        self,
        node: Node,
        server: ParameterServer[VectorShard],
        gradient: PortionGradient,
        read_ahead: Callable[[tuple[int, ...]], None],
    ) -> None:
        self._node, self._server = node, server
        self._gradient, self._read_ahead = gradient, read_ahead
        self._evaluation = -1
        self._params: Slices = ()
        self._computed: dict[int, GradientSum | DeferredSum] = {}

    async def process_portion(self, evaluation: int, total: int, portion: int) -> bool | None:
        """PROCESSPORTION: keeps the gradient until it is told to send it.

        Returns whether it did; not if the evaluation is over; None if a shard does not know it,
        since it was restored.
        """
        ready = await self._has_parameters(evaluation)
        if not ready:
            return ready
        if portion in self._computed:  # it was given away, and came back
            return True
        computing = self._node.compute(self._gradient, self._params, (portion,), total)
        self._read_ahead((portion + 1,))
        self._computed[portion] = await computing
        return True

    def send_gradients(
        self, evaluation: int, part: str, place: int, portions: tuple[int, ...]
    ) -> Future[bool]:
        """SENDGRADIENTS: to all shards; answers when they have it, and works on meanwhile.

        The answer is False where it does not know these gradients (any more).
        """
        if evaluation != self._evaluation or not self._computed.keys() >= set(portions):
            return ready(False)
        total = add_sums([self._computed.pop(portion) for portion in portions])
        sending = self._server.push(
            VectorShard.accrue,
            [
                Contribution(evaluation, part, portions, place, total.piece(i), nbytes)
                for i, nbytes in enumerate(self._server.nbytes)
            ],
        )
        return sending.then(lambda _: True)

    async def redo(
        self, evaluation: int, total: int, part: str, place: int, portions: tuple[int, ...]
    ) -> bool | None:
        """Computes and sends what another replica began to send, or may never send."""
        for portion in portions:
            known = portion in self._computed and evaluation == self._evaluation
            if not known and await self.process_portion(evaluation, total, portion) is None:
                return None
        return await self.send_gradients(evaluation, part, place, portions)

    async def _has_parameters(self, evaluation: int) -> bool | None:
        """Fetches them once an evaluation; False if that evaluation is over, None if it is lost."""
        if evaluation > self._evaluation:
            fetched = await self._server.fetch(VectorShard.fetch, self._node.name)
            if set(fetched.versions) != {evaluation}:
                return None if min(fetched.versions) < evaluation else False
            self._evaluation, self._params, self._computed = evaluation, fetched.slices, {}
        return evaluation == self._evaluation
