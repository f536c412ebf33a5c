"""What a coordinator may ask of vectors that live elsewhere (section 4.2).

Dean et al. 2012: the coordinator "issues commands drawn from a small set of operations
(e.g., dot product, scaling, coefficient-wise addition, multiplication)", which whoever
holds the vectors performs, keeping the results. Commands come in lists, so that many cost
one round trip; what comes back are scalars.
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
    """out <- sum of coefficient * vector: scaling, addition; no terms: zero.

    One term times 1.0 makes `out` another name of that vector: nothing is copied.
    """

    out: str
    terms: tuple[tuple[float, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Multiply:
    """out <- a * b, coefficient by coefficient."""

    out: str
    a: str
    b: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dots:
    """Replies row . column for every row and column, row by row."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


Command = Combine | Multiply | Dots


class Losses(NamedTuple):
    """The loss at "params": mean over a sample, and over what it shares with others."""

    total: float
    before: float  # over what it shares with the sample before
    after: float  # over what it shares with the next one


class Space(Protocol):
    """Vectors by name, and a loss over samples of the data, numbered from 0.

    A method moves to the next sample with every iteration. Where every sample is all the
    data, the three losses are one, and so are the three gradients.

    Attributes:
      before: name of the gradient over what a sample shares with the one before.
      after: name of the gradient over what it shares with the next.
    """

    @property
    def before(self) -> str: ...

    @property
    def after(self) -> str: ...

    def perform(self, *commands: Command) -> Awaitable[list[float]]:
        """Performs the commands in order; the replies of its `Dots`, one after another."""

    def evaluate(self, sample: int, *commands: Command) -> Awaitable[Losses]:
        """Performs the commands, then evaluates at "params"; leaves "gradient" and its parts."""


def perform(vectors: dict[str, Vector], commands: Sequence[Command]) -> np.ndarray[Any, Any]:
    """Performs commands on vectors held here: results go into `vectors`, replies come back.

    Vectors are pytrees of jax or of NumPy arrays, all alike; "params" must be among them.
    None is changed in place, so that one may have several names. Each shape of a list of
    commands is compiled once: coefficients and names are not part of it, nor is whether
    two names of a command are the same. Replies are float64 [replies].

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
    """A list of commands: a program, and what goes into and comes out of it."""

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
        # A name that comes again in a list is another input, so that programs do not
        # depend on how many vectors of a short history are "zero".
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
