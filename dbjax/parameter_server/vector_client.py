"""The shards' vectors as a coordinator sees them: commands out, scalars back (section 4.2).

The coordinator "has no direct access to the model parameters": there is nothing here that could
return a vector.
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
    """What a coordinator exchanged with the shards, over all of them."""

    round_trips: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@final
class VectorClient:
    """The shards as a coordinator sees them, in one of its lives.

    Attributes:
      command: number of the last command, of its lives before too; none is ever used again.
      traffic: so far.
    """

    def __init__(self, server: ParameterServer[VectorShard], command: int = 0) -> None:
        self._server, self.command = server, command
        self.traffic = Traffic()

    def perform(self, *commands: Command) -> Future[list[float]]:
        """Every shard performs the commands; each reply is the sum of the shards'."""
        return self._counted(
            self._server.broadcast(VectorShard.perform, self._next(), commands),
            commands,
            _summed_replies,
        )

    def begin(self, evaluation: int, commands: tuple[Command, ...]) -> Future[None]:
        beginning = self._server.broadcast(VectorShard.begin, self._next(), evaluation, commands)
        return self._counted(beginning, (evaluation, commands), lambda _: None)

    def close(self, evaluation: int, scales: dict[str, float]) -> Future[list[float]]:
        """The losses of the parts; every shard has them, one is asked."""
        closing = self._server.broadcast(VectorShard.close, self._next(), evaluation, scales)
        return self._counted(closing, (evaluation, scales), lambda losses: losses[0])

    def finish(self, iteration: int, examples: int, memo: Any) -> Future[None]:
        """An iteration is done; `examples` were looked at so far, the memo goes to `resume`."""
        finishing = self._server.broadcast(
            VectorShard.finish, self._next(), iteration, examples, memo
        )
        return self._counted(finishing, (iteration, examples, memo), lambda _: None)

    async def resume(self) -> Any:
        """What the coordinator knew at the end of its last finished iteration, or None.

        All shards go back to the end of the last iteration that each of them knows. Where one of
        them is restored meanwhile, to an earlier one.
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
        """The number of the next command."""
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
