"""Shards of named vectors, which perform a coordinator's commands.

Paper: section 4.2, Algorithm 1.2. `vector_client` is the coordinator's side.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, final

import jax

from dbjax.errors import StateLost
from dbjax.optim.space import Combine, Command, Multiply, perform
from dbjax.parameter_server.gradient_sums import DeferredShardSum, ShardSum, SumAccumulator
from dbjax.parameter_server.partition import slice_nbytes
from dbjax.parameter_server.shard import Report, ShardCounts, Snapshot
from dbjax.parameter_server.staleness import StalenessAccounting
from dbjax.runtime.interface import Node
from dbjax.types import Slice

T = TypeVar("T")
P = ParamSpec("P")

GRADIENT = "gradient"
BEGINNING = -1  # the iteration before the first
_LOST = -2  # stands for the number of the last command when it is not known
# The parts of a sample: shared with the previous sample, with none, and with the next.
PARTS = ("before", "only", "after")


@dataclasses.dataclass(frozen=True, slots=True)
class Contribution:
    """The sum of the gradients of some portions, for one shard.

    Attributes:
      evaluation: the number of the evaluation, which identifies the parameters.
      part: the part of the sample that the portions belong to, see `PARTS`.
      portions: the portions; a shard counts each of them once.
      place: the index of the first portion in its part, for sums in a fixed order.
      piece: the shard's part of the sum.
      nbytes: the size of the piece on the wire, in bytes.
    """

    evaluation: int
    part: str
    portions: tuple[int, ...]
    place: int
    piece: ShardSum | DeferredShardSum
    nbytes: int


class Finished(NamedTuple):
    """The state after an iteration, from which a coordinator can be restarted.

    Attributes:
      iteration: the number of the iteration.
      memo: the coordinator's own state.
      vectors: the shard's slice of each vector, by the vector's name.
    """

    iteration: int
    memo: Any
    vectors: dict[str, Slice]


@dataclasses.dataclass(frozen=True, slots=True)
class VectorState:
    """The complete state of a `VectorShard`.

    Attributes:
      vectors: the slice of each vector, by the vector's name.
      evaluation: the number of the current evaluation.
      sums: the gradients accumulated for each part of the sample.
      counted: the portions that the sums include.
      finished: the ends of iterations to which the shard can go back, oldest first.
      counts: what the shard has done so far.
      command: the number of the last command.
      reply: the reply to the last command.
    """

    vectors: dict[str, Slice]
    evaluation: int
    sums: dict[str, SumAccumulator]
    counted: tuple[int, ...]
    finished: tuple[Finished, ...]
    counts: ShardCounts
    command: int
    reply: Any


def _in_order(
    method: Callable[Concatenate[VectorShard, P], T],
) -> Callable[Concatenate[VectorShard, int, P], T]:
    """Makes a method take a command's number first, so that each command is performed once.

    The method raises StateLost if commands before this one are missing, because the shard was
    restored.
    """

    @functools.wraps(method)
    def numbered(self: VectorShard, number: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.numbered(number, functools.partial(method, self, *args, **kwargs))

    made: Callable[Concatenate[VectorShard, int, P], T] = numbered
    return made


@final
class VectorShard:
    """Holds one slice of every vector, and performs the coordinator's commands on it.

    Paper: PARAMETERSERVER of Algorithm 1.2.

    Args:
      node: the node that the shard runs on.
      params: its slice of the initial parameters.
      make_sum: makes an empty sum of gradients.
    """

    def __init__(self, node: Node, params: Slice, make_sum: Callable[[], SumAccumulator]) -> None:
        self._node, self._make_sum = node, make_sum
        self._vectors: dict[str, Slice] = {"params": params}
        self._nbytes = slice_nbytes(params)
        self._evaluation = -1
        self._sums: dict[str, SumAccumulator] = {}
        self._counted: set[int] = set()
        self._finished: tuple[Finished, ...] = (Finished(BEGINNING, None, dict(self._vectors)),)
        self._counts = ShardCounts()
        self._checkpointed: tuple[int, ...] = ()
        self._command: int = 0
        self._reply: Any = None

    def numbered(self, number: int, command: Callable[[], T]) -> T:
        """Performs a command, unless it is a repetition of the last one.

        Args:
          number: the number of the command.
          command: performs the command, and returns its reply.

        Returns:
          The reply; a repeated command gets the same reply again.

        Raises:
          StateLost: commands before this one are missing, because the shard was restored.
        """
        if number != self._command:
            if number != self._command + 1:
                raise StateLost(
                    f"command {number} does not follow the last one that {self._node.name} knows, "
                    f"{self._command}"
                )
            self._reply = command()
            self._command = number
        reply: T = self._reply
        return reply

    # Called by the coordinator: it sends commands and receives scalars.

    @_in_order
    def perform(self, commands: tuple[Command, ...]) -> list[float]:
        """Performs commands on the vectors (PERFORMOPERATION).

        The resulting vectors stay on the shard.

        Args:
          commands: the commands, in order.

        Returns:
          The shard's share of each reply of the `Dots` commands.
        """
        return self._perform(commands)

    @_in_order
    def begin(self, evaluation: int, commands: tuple[Command, ...]) -> None:
        """Begins an evaluation at "params": performs the commands, and zeroes accruedgradients.

        Args:
          evaluation: the number of the evaluation.
          commands: the commands to perform first, in order.
        """
        self._perform(commands)
        self._evaluation = evaluation
        self._sums, self._counted = {}, set()

    @_in_order
    def close(self, evaluation: int, scales: dict[str, float]) -> list[float]:
        """Ends an evaluation: the accumulated gradients become vectors.

        "gradient" is the sum over all parts. If there are several parts, each part's own sum, times
        its scale, also becomes a vector. Gradients that arrive later for this evaluation are not
        counted.

        Args:
          evaluation: the number of the evaluation.
          scales: for each part of the sample, the factor that turns its sum into its mean.

        Returns:
          The summed loss of each part, in the order of `PARTS`.
        """
        sums = {part: self._sums[part].total() for part in PARTS if part in self._sums}
        self._sums = {}
        first, *others = sums.values()
        made = {GRADIENT: first.gradient}
        if others:
            made = _scaled([one.gradient for one in sums.values()], [scales[p] for p in sums])
            made = dict(zip([GRADIENT, *sums], made.values(), strict=True))
        self._vectors |= made
        return [float(one.loss) for one in sums.values()]

    @_in_order
    def finish(self, iteration: int, examples: int, memo: Any) -> None:
        """Keeps the current vectors (by reference) and the coordinator's state.

        Args:
          iteration: the number of the iteration that has ended.
          examples: the number of examples processed so far.
          memo: the coordinator's own state.
        """
        self._counts.applied, self._counts.examples = iteration, examples
        finished = Finished(iteration, memo, dict(self._vectors))
        # After a rewind, iterations are repeated and replace the earlier ones.
        known = [f for f in self._finished if f.iteration < iteration]
        asked = {BEGINNING, *self._checkpointed}
        kept = [f for f in known if f.iteration in asked or f is known[-1]]
        self._finished = (*kept, finished)

    def standing(self) -> tuple[list[int], int]:
        """Returns the iterations that the shard can go back to, and the last command's number.

        These iterations are the last two, those of the latest checkpoints, and the beginning.
        """
        return [finished.iteration for finished in self._finished], self._command

    def rewind(self, iteration: int, command: int) -> Any:
        """Goes back to the end of an iteration.

        Args:
          iteration: the number of the iteration.
          command: the number of the coordinator's last command; its next command has the next
            number.

        Returns:
          The coordinator's own state at the end of the iteration.

        Raises:
          StateLost: the shard was restored, and does not know that iteration.
        """
        kept = tuple(f for f in self._finished if f.iteration <= iteration)
        found = kept[-1]
        if found.iteration != iteration:
            raise StateLost(f"{self._node.name} does not know the end of iteration {iteration}")
        self._finished = kept
        self._vectors, self._command = dict(found.vectors), command
        self._evaluation, self._sums, self._counted = -1, {}, set()
        return found.memo

    def _perform(self, commands: tuple[Command, ...]) -> list[float]:
        replies: list[float] = perform(self._vectors, commands).tolist()
        self._node.count_memory_traffic([self._vectors[name] for name in _moved(commands)])
        return replies

    # Called by the replicas.

    def fetch(self, replica: str) -> Snapshot:
        """Returns the slice of "params" (GETPARAMETERSFROMPARAMSERVER).

        Its version is the number of the current evaluation.

        Args:
          replica: the name of the node that fetches.
        """
        self._counts.bytes_fetched += self._nbytes
        return Snapshot(self._evaluation, self._vectors["params"], self._nbytes)

    def accumulate(self, contribution: Contribution) -> None:
        """Adds gradients to accruedgradients, counting each portion once.

        Several replicas may send the gradient of the same portion. These gradients are equal, so
        it makes no difference which of them counts. Gradients of an earlier evaluation are
        ignored.

        Raises:
          RuntimeError: some of the portions were counted before, but not all of them.
        """
        self._counts.bytes_pushed += contribution.nbytes
        if contribution.evaluation != self._evaluation:
            return
        known = self._counted.intersection(contribution.portions)
        if known:
            self._counts.repeated += 1
            if len(known) != len(contribution.portions):
                raise RuntimeError(f"portions {sorted(known)} were counted with others before")
            return
        self._counted.update(contribution.portions)
        accumulator = self._sums.setdefault(contribution.part, self._make_sum())
        accumulator.add(contribution.place, contribution.piece)

    # Called by observers: these methods change nothing.

    def peek(self) -> Snapshot:
        """Returns the parameters at the end of the last iteration, not those being tried."""
        last = self._finished[-1]
        return Snapshot(max(0, last.iteration), last.vectors["params"], self._nbytes)

    def report(self) -> Report:
        """Returns what the shard has done so far; its version is the number of iterations."""
        return Report(
            self.peek().version, dataclasses.replace(self._counts), StalenessAccounting(), {}
        )

    # Called for checkpoints and for the backup.

    def state(self) -> VectorState:
        """Returns the complete state, which does not change when the shard does."""
        return VectorState(
            dict(self._vectors),
            self._evaluation,
            {part: one.copy() for part, one in self._sums.items()},
            tuple(self._counted),
            self._finished,
            dataclasses.replace(self._counts),
            self._command,
            self._reply,
        )

    def checkpoint(self) -> VectorState:
        """Returns the state to save in a checkpoint: the ends of the latest iterations.

        The shard also keeps these iterations in memory, so that it can go back to them when
        another shard is restored from the checkpoint.
        """
        latest = self._finished[-2:]
        self._checkpointed = (*self._checkpointed[-2:], *(f.iteration for f in latest))
        state = dataclasses.replace(self.state(), finished=latest, sums={}, counted=())
        return dataclasses.replace(state, vectors=latest[-1].vectors)

    def restore(self, state: VectorState, *, checkpoint: bool = False) -> None:
        """Replaces the shard's complete state.

        Args:
          state: the new state.
          checkpoint: whether the state is from a checkpoint, so that the coordinator has to go
            back, too.
        """
        self._vectors, self._evaluation = dict(state.vectors), state.evaluation
        self._sums = {part: one.copy() for part, one in state.sums.items()}
        self._counted = set(state.counted)
        beginning = () if state.finished[0].iteration == BEGINNING else self._finished[:1]
        self._finished = (*beginning, *state.finished)
        self._counts = dataclasses.replace(state.counts)
        self._command, self._reply = state.command, state.reply
        if checkpoint:
            self._command, self._evaluation = _LOST, BEGINNING


@jax.jit
def _scaled(sums: list[Slice], scales: list[float]) -> dict[int, Slice]:
    """Returns the sum over all parts (key 0), then each part's own mean."""
    whole = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *sums)

    def scaled(one: Slice, scale: float) -> Slice:
        return {name: scale * value for name, value in one.items()}

    return dict(enumerate([whole, *map(scaled, sums, scales)]))


def _moved(commands: Sequence[Command]) -> list[str]:
    """Lists every vector that the commands read or write, once for each access."""
    names: list[str] = []
    for command in commands:
        if isinstance(command, Combine) and len(command.terms) == 1 and command.terms[0][0] == 1.0:
            continue  # only gives the vector another name
        if isinstance(command, Combine):
            names += [command.out, *(name for _, name in command.terms)]
        elif isinstance(command, Multiply):
            names += [command.out, command.a, command.b]
        else:
            names += {*command.rows, *command.columns}
    return names
