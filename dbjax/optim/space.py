"""Commands that a coordinator issues on vectors that are stored elsewhere (section 4.2).

Dean et al. 2012: the coordinator "issues commands drawn from a small set of operations
(e.g., dot product, scaling, coefficient-wise addition, multiplication)". The holder of the vectors
performs the commands and keeps the results. Commands are sent in lists, so that several of them
cost one round trip. Only scalars are returned.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dbjax.optim.vector_program import Vector as Vector
from dbjax.optim.vector_program import VectorProgram, run


@dataclasses.dataclass(frozen=True, slots=True)
class Combine:
    """out <- sum of coefficient * vector, for scaling and addition.

    A single term with coefficient 1.0 makes `out` another name of that vector without a copy.

    Attributes:
      out: the name of the result.
      terms: pairs of a coefficient and the name of a vector. Without terms the result is zero.
    """

    out: str
    terms: tuple[tuple[float, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Multiply:
    """out <- a * b, coefficient by coefficient.

    Attributes:
      out: the name of the result.
      a: the name of the first factor.
      b: the name of the second factor.
    """

    out: str
    a: str
    b: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dots:
    """Requests the dot product of every row with every column.

    The reply consists of `len(rows) * len(columns)` numbers, row by row.

    Attributes:
      rows: names of vectors.
      columns: names of vectors.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]


Command = Combine | Multiply | Dots


class Losses(NamedTuple):
    """Mean losses at "params" over a sample of the data and over parts of the sample.

    Attributes:
      total: the loss over the whole sample.
      before: the loss over the examples that this sample shares with the previous sample.
      after: the loss over the examples that this sample shares with the next sample.
    """

    total: float
    before: float
    after: float


class Space(Protocol):
    """Named vectors, and a loss over samples of the data.

    Samples are numbered from 0, and a batch method moves to the next sample with every iteration.
    If every sample consists of all the data, the three losses are equal, and so are the three
    gradients.

    Attributes:
      before: the name of the gradient over the examples that a sample shares with the previous
        one.
      after: the name of the gradient over the examples that a sample shares with the next one.
    """

    @property
    def before(self) -> str: ...

    @property
    def after(self) -> str: ...

    def perform(self, *commands: Command) -> Awaitable[list[float]]:
        """Performs commands in order.

        Args:
          *commands: the commands.

        Returns:
          The replies of all `Dots` among them, concatenated.
        """

    def evaluate(self, sample: int, *commands: Command) -> Awaitable[Losses]:
        """Performs commands, then evaluates the loss and its gradient at "params".

        The gradients are stored as "gradient" and under the names `before` and `after`.

        Args:
          sample: the number of the sample.
          *commands: the commands.

        Returns:
          The losses over the sample.
        """


def perform(vectors: dict[str, Vector], commands: Sequence[Command]) -> np.ndarray[Any, Any]:
    """Performs commands on vectors in this process, and stores the results in `vectors`.

    Lists of commands that differ only in their coefficients and names share one compiled program,
    even if a name occurs twice in a command of one list and not of the other.

    Args:
      vectors: the vectors by name, which must include "params". They are pytrees of JAX or of
        NumPy arrays with the same structure and shapes. Vectors are never modified in place, so
        one vector may have several names.
      commands: the commands.

    Returns:
      The replies of all `Dots`, concatenated, in float64.

    Raises:
      KeyError: a command names a vector that does not exist.
    """
    plan = _planned(commands)
    given = [vectors[name] for name in plan.inputs]
    made, replies = run(plan.program, vectors["params"], given, plan.coefficients)
    values = dict(enumerate(given)) | dict(zip(plan.program.kept, made, strict=True))
    vectors.update({name: values[place] for name, place in plan.outputs.items()})
    return replies


class _Plan(NamedTuple):
    """A list of commands as a program, with its inputs and outputs."""

    program: VectorProgram
    inputs: list[str]
    coefficients: list[float]
    outputs: dict[str, int]  # name -> place


def _planned(commands: Sequence[Command]) -> _Plan:
    inputs: dict[tuple[str, int], int] = {}
    outputs: dict[str, int] = {}
    coefficients: list[float] = []
    steps: list[tuple[str, tuple[int, ...]]] = []
    pairs: list[tuple[int, int]] = []

    def places(names: Sequence[str]) -> tuple[int, ...]:
        # A name that is repeated in a list becomes another input, so that programs do not depend
        # on how many vectors of a short history are "zero".
        again = Counter[str]()
        found = []
        for name in names:
            key = name, again[name]
            place = outputs.get(name)
            found.append(inputs.setdefault(key, len(inputs)) if place is None else place)
            again[name] += 1
        return tuple(found)

    def make(out: str, kind: str, arguments: tuple[int, ...]) -> None:
        outputs[out] = ~len(steps)
        steps.append((kind, arguments))

    for command in commands:
        match command:
            case Combine(out, ((1.0, name),)):
                (outputs[out],) = places((name,))
            case Combine(out, terms):
                coefficients += [coefficient for coefficient, _ in terms]
                make(out, "combine", places([name for _, name in terms]))
            case Multiply(out, a, b):
                make(out, "multiply", places((a, b)))
            case Dots(rows, columns):
                across = places(columns)
                pairs += [(row, column) for row in places(rows) for column in across]
    kept = tuple(sorted({place for place in outputs.values() if place < 0}))
    program = VectorProgram(tuple(steps), tuple(pairs), kept)
    return _Plan(program, [name for name, _ in inputs], coefficients, outputs)
