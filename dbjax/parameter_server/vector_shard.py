"""Vectors that live cut across the shards, and the commands that move them (section 4.2).

`commanding` has the coordinator's side.
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
_LOST = -2  # number of the last command, where it is not known any more
PARTS = ("before", "only", "after")  # of a sample: shared with the one before, ..., the next


@dataclasses.dataclass(frozen=True, slots=True)
class Contribution:
    """Summed gradients of some portions, for one shard.

    Attributes:
      evaluation: the parameters' version.
      part: of the sample, see `PARTS`.
      portions: whose gradients these are; a shard counts each portion once.
      place: of the first of them in the part, for sums in a fixed order.
    """

    evaluation: int
    part: str
    portions: tuple[int, ...]
    place: int
    piece: ShardSum | DeferredShardSum
    nbytes: int


class Finished(NamedTuple):
    """What a coordinator can be restarted from: its own few numbers, and the vectors."""

    iteration: int
    memo: Any
    vectors: dict[str, Slice]


@dataclasses.dataclass(frozen=True, slots=True)
class VectorState:
    """All that a `VectorShard` knows."""

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
    """The coordinator's commands have numbers: each is performed once, and none left out.

    Raises:
      StateLost: the shard does not know what came before, since it was restored.
    """

    @functools.wraps(method)
    def numbered(self: VectorShard, number: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.numbered(number, functools.partial(method, self, *args, **kwargs))

    made: Callable[Concatenate[VectorShard, int, P], T] = numbered
    return made


@final
class VectorShard:
    """PARAMETERSERVER of Algorithm 1.2: its slice of every vector; PERFORMOPERATION."""

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
        """Performs a command of that number, or replies what it replied before."""
        if number != self._command:
            if number != self._command + 1:
                raise StateLost(
                    f"command {number} of {self._node.name}, which knows {self._command}"
                )
            self._reply = command()
            self._command = number
        reply: T = self._reply
        return reply

    # For the coordinator: commands in, scalars out.

    @_in_order
    def perform(self, commands: tuple[Command, ...]) -> list[float]:
        """PERFORMOPERATION: results stay here, the replies of `Dots` go back."""
        return self._perform(commands)

    @_in_order
    def begin(self, evaluation: int, commands: tuple[Command, ...]) -> None:
        """Accrued gradients <- 0, for a new evaluation at "params" after these commands."""
        self._perform(commands)
        self._evaluation = evaluation
        self._sums, self._counted = {}, set()

    @_in_order
    def close(self, evaluation: int, scales: dict[str, float]) -> list[float]:
        """Accrued gradients become vectors; the summed losses of the parts go back.

        "gradient" is the sum over all parts; where there are several, each part's own is a
        vector too, times its scale. What comes later for this evaluation is not counted.
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
        """Keeps the vectors as they are (by reference), and the coordinator's numbers."""
        self._counts.applied, self._counts.examples = iteration, examples
        finished = Finished(iteration, memo, dict(self._vectors))
        known = [f for f in self._finished if f.iteration < iteration]  # after a rewind: anew
        asked = {BEGINNING, *self._checkpointed}
        kept = [f for f in known if f.iteration in asked or f is known[-1]]
        self._finished = (*kept, finished)

    def standing(self) -> tuple[list[int], int]:
        """Iterations that it can go back to, and the number of the last command.

        They are the last two, those of the latest checkpoints, and the beginning.
        """
        return [finished.iteration for finished in self._finished], self._command

    def rewind(self, iteration: int, command: int) -> Any:
        """Back to the end of that iteration; what the coordinator knew then.

        Args:
          command: number of the coordinator's last command; the next one has the next.

        Raises:
          StateLost: the shard was restored, and does not know that iteration (any more).
        """
        kept = tuple(f for f in self._finished if f.iteration <= iteration)
        found = kept[-1]
        if found.iteration != iteration:
            raise StateLost(f"the end of iteration {iteration}, by {self._node.name}")
        self._finished = kept
        self._vectors, self._command = dict(found.vectors), command
        self._evaluation, self._sums, self._counted = -1, {}, set()
        return found.memo

    def _perform(self, commands: tuple[Command, ...]) -> list[float]:
        replies: list[float] = perform(self._vectors, commands).tolist()
        self._node.count_memory_traffic([self._vectors[name] for name in _moved(commands)])
        return replies

    # For the replicas.

    def fetch(self, replica: str) -> Snapshot:
        """GETPARAMETERSFROMPARAMSERVER; the version is the evaluation's number."""
        self._counts.bytes_fetched += self._nbytes
        return Snapshot(self._evaluation, self._vectors["params"], self._nbytes)

    def accrue(self, contribution: Contribution) -> None:
        """Accrued gradients += gradient; each portion once, whoever sends it how often.

        Copies of a portion are equal, so which of them counts makes no difference. Late
        ones, of an evaluation that is over, are left out.
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
        make_sum = self._sums.setdefault(contribution.part, self._make_sum())
        make_sum.add(contribution.place, contribution.piece)

    # For an observer: leave no trace.

    def peek(self) -> Snapshot:
        """The parameters at the end of the last iteration, not those on trial."""
        last = self._finished[-1]
        return Snapshot(max(0, last.iteration), last.vectors["params"], self._nbytes)

    def report(self) -> Report:
        return Report(
            self.peek().version, dataclasses.replace(self._counts), StalenessAccounting(), {}
        )

    # For a checkpoint, and for another copy.

    def state(self) -> VectorState:
        """All that it knows; it may go on meanwhile."""
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
        """What of it outlives the run: the ends of its latest iterations.

        It keeps them, so that all shards can go back to where one of them is restored to.
        """
        latest = self._finished[-2:]
        self._checkpointed = (*self._checkpointed[-2:], *(f.iteration for f in latest))
        state = dataclasses.replace(self.state(), finished=latest, sums={}, counted=())
        return dataclasses.replace(state, vectors=latest[-1].vectors)

    def restore(self, state: VectorState, *, checkpoint: bool = False) -> None:
        """Knows what a state says, and nothing else.

        Args:
          checkpoint: the state is of an earlier time: the coordinator has to go back too.
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
    """The whole sum, then each part's own mean."""
    whole = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *sums)

    def scaled(one: Slice, scale: float) -> Slice:
        return {name: scale * value for name, value in one.items()}

    return dict(enumerate([whole, *map(scaled, sums, scales)]))


def _moved(commands: Sequence[Command]) -> list[str]:
    """Every vector that a list of commands reads or writes, each time."""
    names: list[str] = []
    for command in commands:
        if isinstance(command, Combine) and len(command.terms) == 1 and command.terms[0][0] == 1.0:
            continue  # another name
        if isinstance(command, Combine):
            names += [command.out, *(name for _, name in command.terms)]
        elif isinstance(command, Multiply):
            names += [command.out, command.a, command.b]
        else:
            names += {*command.rows, *command.columns}
    return names
