"""What a coordinator may ask of vectors that live elsewhere (section 4.2).

Dean et al. 2012: the coordinator "issues commands drawn from a small set of operations
(e.g., dot product, scaling, coefficient-wise addition, multiplication)", which whoever
holds the vectors performs, keeping the results. Commands come in lists, so that many cost
one round trip; what comes back are scalars.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Vector = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True, slots=True)
class Combine:
    """out <- sum of coefficient * vector: scaling, addition, copy; no terms: zero."""

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
    Each shape of a list of commands is compiled once: coefficients and names are not part
    of it. Replies are float64 [replies].

    Raises:
      KeyError: a command names a vector that does not exist.
    """
    names, outs, shape, coefficients = _shape(commands)
    given = [vectors[name] for name in names]
    if isinstance(jax.tree.leaves(vectors["params"])[0], jax.Array):
        made, replies = _compiled(shape)(vectors["params"], given, coefficients)
    else:
        made, replies = _run(shape, vectors["params"], given, coefficients)
    vectors.update(zip(outs, made, strict=True))
    return np.asarray(replies, np.float64)


Shape = tuple[tuple[Any, ...], ...]


def _shape(commands: Sequence[Command]) -> tuple[list[str], list[str], Shape, list[float]]:
    """Commands with positions for names: inputs, outputs, what is done, and coefficients."""
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}

    def place(name: str) -> tuple[str, int]:
        if name in outputs:
            return "out", outputs[name]
        return "in", inputs.setdefault(name, len(inputs))

    def make(name: str) -> int:
        return outputs.setdefault(name, len(outputs))

    shape: list[tuple[Any, ...]] = []
    coefficients: list[float] = []
    for command in commands:
        match command:
            case Combine(out, terms):
                places = tuple(place(name) for _, name in terms)
                coefficients += [coefficient for coefficient, _ in terms]
                shape.append(("combine", make(out), places))
            case Multiply(out, a, b):
                places = place(a), place(b)
                shape.append(("multiply", make(out), places))
            case Dots(rows, columns):
                shape.append(("dots", tuple(map(place, rows)), tuple(map(place, columns))))
    return list(inputs), list(outputs), tuple(shape), coefficients


@functools.lru_cache(maxsize=256)
def _compiled(shape: Shape) -> Callable[..., Any]:
    return jax.jit(functools.partial(_run, shape))


def _run(
    shape: Shape, like: Vector, given: Sequence[Vector], coefficients: Sequence[Any]
) -> tuple[list[Vector], Any]:
    made: dict[int, Vector] = {}
    replies: list[Any] = []
    remaining = iter(coefficients)

    def at(place: tuple[str, int]) -> Vector:
        kind, index = place
        return given[index] if kind == "in" else made[index]

    for kind, *arguments in shape:
        if kind == "combine":
            out, places = arguments
            terms = [(next(remaining), at(place)) for place in places]
            made[out] = _combined(terms, like)
        elif kind == "multiply":
            out, (a, b) = arguments
            made[out] = jax.tree.map(lambda x, y: x * y, at(a), at(b))
        else:
            rows, columns = ([at(place) for place in places] for places in arguments)
            replies += [_dot(row, column) for row in rows for column in columns]
    stacked = jnp.stack(replies) if replies and isinstance(replies[0], jax.Array) else replies
    return [made[index] for index in sorted(made)], stacked


def _combined(terms: Sequence[tuple[Any, Vector]], like: Vector) -> Vector:
    if not terms:
        return jax.tree.map(lambda x: x * 0, like)

    def combined(*leaves: Any) -> Any:
        scaled = (_as(c, leaf) * leaf for (c, _), leaf in zip(terms, leaves, strict=True))
        return functools.reduce(lambda a, b: a + b, scaled)

    return jax.tree.map(combined, *(vector for _, vector in terms))


def _as(coefficient: Any, leaf: Any) -> Any:
    return jnp.asarray(coefficient, leaf.dtype) if isinstance(leaf, jax.Array) else coefficient


def _dot(a: Vector, b: Vector) -> Any:
    """Sum over all coefficients; in float32 at least."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((x * y).sum(dtype=np.promote_types(x.dtype, np.float32)) for x, y in pairs)
