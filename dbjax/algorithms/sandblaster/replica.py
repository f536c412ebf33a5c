"""A model replica of Sandblaster: computes the gradients of portions, and sends their sums."""

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
    """Computes the gradients of portions when the coordinator asks for them.

    Its state is lost when its node fails; the gradients are then computed again.

    Paper: REPLICA of Algorithm 1.2.

    Args:
      node: the node that the replica runs on.
      server: the shards.
      gradient: (parameters, portions, examples in the batch) -> the portions' share of the batch's
        loss and gradient.
      read_ahead: is called with the portion that probably comes next.
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
        """Computes the gradient of a portion, and keeps it until it is to be sent (PROCESSPORTION).

        Args:
          evaluation: the number of the evaluation.
          total: the number of examples in the batch.
          portion: the portion.

        Returns:
          True if the gradient was computed, False if the evaluation is over, None if a shard was
          restored and does not know the evaluation.
        """
        ready = await self._has_parameters(evaluation)
        if not ready:
            return ready
        if portion in self._computed:  # it was given to another replica, and came back
            return True
        computing = self._node.compute(self._gradient, self._params, (portion,), total)
        self._read_ahead((portion + 1,))
        self._computed[portion] = await computing
        return True

    def send_gradients(
        self, evaluation: int, part: str, place: int, portions: tuple[int, ...]
    ) -> Future[bool]:
        """Sends the sum of some portions' gradients to all shards (SENDGRADIENTS).

        The replica can compute other portions before the shards have answered.

        Args:
          evaluation: the number of the evaluation.
          part: the part of the sample that the portions belong to.
          place: the index of the first portion in its part.
          portions: the portions.

        Returns:
          A future that is True when all shards have the sum, or False at once if the replica does
          not have these gradients.
        """
        if evaluation != self._evaluation or not self._computed.keys() >= set(portions):
            return ready(False)
        total = add_sums([self._computed.pop(portion) for portion in portions])
        sending = self._server.push(
            VectorShard.accumulate,
            [
                Contribution(evaluation, part, portions, place, total.piece(i), nbytes)
                for i, nbytes in enumerate(self._server.nbytes)
            ],
        )
        return sending.then(lambda _: True)

    async def redo(
        self, evaluation: int, total: int, part: str, place: int, portions: tuple[int, ...]
    ) -> bool | None:
        """Computes and sends gradients that another replica began to send, or may never send.

        Args:
          evaluation: the number of the evaluation.
          total: the number of examples in the batch.
          part: the part of the sample that the portions belong to.
          place: the index of the first portion in its part.
          portions: the portions.

        Returns:
          True if the shards have the sum, False if the evaluation is over, None if a shard was
          restored and does not know the evaluation.
        """
        for portion in portions:
            known = portion in self._computed and evaluation == self._evaluation
            if not known and await self.process_portion(evaluation, total, portion) is None:
                return None
        return await self.send_gradients(evaluation, part, place, portions)

    async def _has_parameters(self, evaluation: int) -> bool | None:
        """Fetches the parameters once per evaluation.

        Returns:
          True if they are there, False if the evaluation is over, None if a shard was restored and
          does not know the evaluation.
        """
        if evaluation > self._evaluation:
            fetched = await self._server.fetch(VectorShard.fetch, self._node.name)
            if set(fetched.versions) != {evaluation}:
                return None if min(fetched.versions) < evaluation else False
            self._evaluation, self._params, self._computed = evaluation, fetched.slices, {}
        return evaluation == self._evaluation
