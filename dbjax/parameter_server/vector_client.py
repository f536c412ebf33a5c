"""The coordinator's client of the vector shards: it sends commands and receives scalars.

Paper: section 4.2. The coordinator has "no direct access to the model parameters": no method of
this client returns a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

from dbjax.errors import ServiceError, StateLost
from dbjax.optim.space import Command
from dbjax.parameter_server.client import ParameterServer
from dbjax.parameter_server.vector_shard import BEGINNING, VectorShard
from dbjax.runtime.interface import Future, size_bytes

_NUMBER_BYTES = 8


@dataclasses.dataclass
class Traffic:
    """The messages between a coordinator and the shards, summed over the shards.

    Attributes:
      round_trips: the number of commands; one that goes to all shards counts once.
      bytes_sent: the size of the commands, in bytes.
      bytes_received: the size of the replies, in bytes.
    """

    round_trips: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@final
class VectorClient:
    """Commands the vector shards for one incarnation of the coordinator.

    Args:
      server: the shards.
      command: the number of the last command that may have been used before.

    Attributes:
      command: the number of the last command; no number is ever used again, not even by a later
        incarnation of the coordinator.
      traffic: the messages exchanged so far.
    """

    def __init__(self, server: ParameterServer[VectorShard], command: int = 0) -> None:
        self._server, self.command = server, command
        self.traffic = Traffic()

    def perform(self, *commands: Command) -> Future[list[float]]:
        """Has every shard perform the commands.

        Args:
          *commands: the commands, in order.

        Returns:
          A future of the replies of the `Dots` commands, each summed over the shards.
        """
        return self._counted(
            self._server.broadcast(VectorShard.perform, self._next(), commands),
            commands,
            _summed_replies,
        )

    def begin(self, evaluation: int, commands: tuple[Command, ...]) -> Future[None]:
        """Begins an evaluation of the loss and its gradient at "params".

        Args:
          evaluation: the number of the evaluation.
          commands: commands that every shard performs first.
        """
        beginning = self._server.broadcast(VectorShard.begin, self._next(), evaluation, commands)
        return self._counted(beginning, (evaluation, commands), lambda _: None)

    def close(self, evaluation: int, scales: dict[str, float]) -> Future[list[float]]:
        """Ends an evaluation: the accumulated gradients become vectors.

        Args:
          evaluation: the number of the evaluation.
          scales: for each part of the sample, the factor that turns its sum into its mean.

        Returns:
          A future of the parts' losses, in their order, as one of the shards has them; all shards
          have the same.
        """
        closing = self._server.broadcast(VectorShard.close, self._next(), evaluation, scales)
        return self._counted(closing, (evaluation, scales), lambda losses: losses[0])

    def finish(self, iteration: int, examples: int, memo: Any) -> Future[None]:
        """Marks the end of an iteration, to which the shards can go back.

        Args:
          iteration: the number of the iteration.
          examples: the number of examples processed so far.
          memo: the coordinator's own state, which `resume` returns.
        """
        finishing = self._server.broadcast(
            VectorShard.finish, self._next(), iteration, examples, memo
        )
        return self._counted(finishing, (iteration, examples, memo), lambda _: None)

    async def resume(self) -> Any:
        """Rewinds all shards to the end of the last iteration that each of them knows.

        If a shard is restored meanwhile, the rewind is repeated; it may then go further back.

        Returns:
          The coordinator's state at the end of that iteration; None at the beginning of a run.
        """
        while True:
            try:
                return await self._rewound()
            except ServiceError as error:
                if not isinstance(error.__cause__, StateLost):
                    raise

    async def _rewound(self) -> Any:
        standing = await self._counted(self._server.broadcast(VectorShard.standing), (), list)
        if all(one == ([BEGINNING], self.command) for one in standing):
            return None
        last = max(set.intersection(*(set(iterations) for iterations, _ in standing)))
        rewinding = self._server.broadcast(VectorShard.rewind, last, self.command)
        return await self._counted(rewinding, (last,), lambda memos: memos[0])

    def _next(self) -> int:
        self.command += 1
        return self.command

    def _counted(
        self, replying: Future[list[Any]], sent: Any, combine: Callable[[list[Any]], Any]
    ) -> Future[Any]:
        shards = len(self._server.shards)
        self.traffic.round_trips += 1
        self.traffic.bytes_sent += shards * size_bytes(sent, _NUMBER_BYTES)

        def received(replies: list[Any]) -> Any:
            self.traffic.bytes_received += size_bytes(replies, _NUMBER_BYTES)
            return combine(replies)

        return replying.then(received)


def _summed_replies(replies: list[list[float]]) -> list[float]:
    return [sum(parts) for parts in zip(*replies, strict=True)]
