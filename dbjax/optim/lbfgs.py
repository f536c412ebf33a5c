"""L-BFGS: Liu & Nocedal 1989; Nocedal & Wright 2006, algorithms 7.4 and 7.5.

The vectors of the history stay where the parameters are. The direction is a combination of
2 m + 1 of them, whose coefficients follow from their dot products alone (Chen, Wang & Zhou
2014, "Large-scale L-BFGS using MapReduce"): per iteration O(m) new ones, in one round trip.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.optim.gram import bordered, order
from dbjax.optim.inputs import require_bool, require_integer, require_number
from dbjax.optim.search import search_along
from dbjax.optim.space import Combine, Command, Dots, Space
from dbjax.optim.state import State, start
from dbjax.optim.wolfe import Wolfe, require_search

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class History:
    """What the coordinator knows of the pairs s, y.

    Attributes:
      slots: where the pairs lie, "s3" and "y3" for 3, oldest first. There is one more than
        pairs are kept, so that a pair which is no good costs no other.
      gram: dot products of s (oldest first), y (oldest first) and the gradient; empty: to
        be asked for.
    """

    slots: tuple[int, ...] = ()
    gram: Matrix = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))


@dataclasses.dataclass(frozen=True)
class Lbfgs:
    """L-BFGS.

    Attributes:
      memory: pairs that are kept, m.
      vector_free: one round trip for the direction; False: the two-loop recursion on the
        vectors themselves, 2 m + 1 more.
      curvature: a pair is taken if s . y > curvature |s|^2 (proof 15).
      damped: Powell's damping instead of leaving a pair out: y is mixed with s / gamma.
      first_step: length of the first trial of all, at most, in units of the parameters; at
        most that of the gradient.
      wolfe: the line search.
    """

    memory: int = 10
    vector_free: bool = True
    curvature: float = 1e-10
    damped: bool = False
    first_step: float = 1.0
    wolfe: Wolfe = Wolfe()

    def __post_init__(self) -> None:
        require_integer("Lbfgs.memory", self.memory, least=1)
        require_bool("Lbfgs.vector_free", self.vector_free)
        require_number("Lbfgs.curvature", self.curvature)
        require_bool("Lbfgs.damped", self.damped)
        require_number("Lbfgs.first_step", self.first_step, above=0)
        require_search("Lbfgs.wolfe", self.wolfe)

    async def start(self, space: Space) -> State:
        state, square = await start(space, Combine("zero"))
        return dataclasses.replace(state, memory=History(gram=np.array([[square]])))

    def memo(self, state: State) -> State:
        """Without the dot products, which the vectors still know."""
        return dataclasses.replace(state, memory=History(state.memory.slots))

    async def iterate(self, space: Space, state: State) -> State:
        history = await self._remember(space, state)
        coefficients = direction_coefficients(history.gram)
        slope = float(coefficients @ history.gram[-1])
        prepare: tuple[Command, ...] = (self._combine(history, coefficients),)
        if not self.vector_free:
            slope, prepare = await _two_loops(space, history), ()
        length = self.first_step / max(state.gradient_norm, 1e-300)
        step = 1.0 if history.slots else min(1.0, length)
        state = dataclasses.replace(state, memory=history)
        return await search_along(space, state, self.wolfe, step, slope, prepare)

    async def _remember(self, space: Space, state: State) -> History:
        """Takes the pair of the last iteration into the history, if it is any good."""
        known = await _known(space, state)
        if state.iteration == 0:
            return known
        slot = next(i for i in range(self.memory + 1) if i not in known.slots)
        s, y = f"s{slot}", f"y{slot}"
        olds = [*_names("s", known.slots, self.memory), *_names("y", known.slots, self.memory)]
        replies = await space.perform(
            Combine(s, ((1.0, "params"), (-1.0, "start"))),
            Combine(y, ((1.0, space.before), (-1.0, "origin"))),
            Dots((s, y, "gradient"), (*olds, s, y, "gradient")),
        )
        rows = np.array(replies).reshape(3, -1)
        history = History((*known.slots, slot), _grown(known, rows, self.memory))
        at_s, at_y = len(known.slots), 2 * len(known.slots) + 1
        ss, sy, yy = (history.gram[i] for i in ((at_s, at_s), (at_s, at_y), (at_y, at_y)))
        good = sy > self.curvature * ss > 0
        if not np.isfinite(rows).all() or not (good or (self.damped and ss > 0)):
            return _without(history, len(known.slots))
        if not good:
            history = await self._damp(space, history, (yy / ss) ** 0.5)
        return history if len(history.slots) <= self.memory else _without(history, 0)

    async def _damp(self, space: Space, history: History, scale: float) -> History:
        """Powell 1978, with a multiple of the identity for B: y <- theta y + (1 - theta) B s."""
        pairs = len(history.slots)
        at_s, at_y = pairs - 1, 2 * pairs - 1
        gram = history.gram.copy()
        bowed = scale * gram[at_s, at_s]
        theta = min(1.0, 0.8 * bowed / (bowed - gram[at_s, at_y]))
        mix = np.eye(len(gram))
        mix[at_y, at_y], mix[at_y, at_s] = theta, (1 - theta) * scale
        name = history.slots[-1]
        terms = ((theta, f"y{name}"), ((1 - theta) * scale, f"s{name}"))
        await space.perform(Combine(f"y{name}", terms))
        return History(history.slots, mix @ gram @ mix.T)

    def _combine(self, history: History, coefficients: Matrix) -> Command:
        """Direction <- the combination; absent pairs are zeros, so that it compiles once."""
        pairs = len(history.slots)
        s, y = coefficients[:pairs], coefficients[pairs:-1]
        absent = ((0.0, "zero"),) * (self.memory - pairs)
        terms = (
            *absent,
            *((float(c), f"s{i}") for c, i in zip(s, history.slots, strict=True)),
            *absent,
            *((float(c), f"y{i}") for c, i in zip(y, history.slots, strict=True)),
            (float(coefficients[-1]), "gradient"),
        )
        return Combine("direction", terms)


def direction_coefficients(gram: Any) -> Any:
    """Of s (oldest first), y (oldest first) and the gradient in -H gradient, [2 m + 1].

    The two-loop recursion, carried out on coefficients. `gram` [2 m + 1, 2 m + 1], of NumPy
    or of jax, holds the dot products of these vectors; H starts from s . y / y . y of the
    newest pair. Absent pairs are rows and columns of zeros, before the others, and
    contribute nothing: their coefficients are 0.
    """
    pairs = len(gram) // 2
    unit = np.eye(len(gram), dtype=gram.dtype)
    sy, yy = gram.diagonal(pairs)[:pairs], gram.diagonal()[pairs:-1]
    sy, yy = sy + (sy == 0), yy + (sy == 0)  # absent: 1, so that the quotients are 0 and 1
    coefficients = -unit[-1]
    alpha = {}
    for i in reversed(range(pairs)):
        alpha[i] = gram[i] @ coefficients / sy[i]
        coefficients = coefficients - alpha[i] * unit[pairs + i]
    if pairs:
        coefficients = coefficients * (sy[-1] / yy[-1])
    for i in range(pairs):
        beta = gram[pairs + i] @ coefficients / sy[i]
        coefficients = coefficients + (alpha[i] - beta) * unit[i]
    return coefficients


async def _known(space: Space, state: State) -> History:
    """The history; of a state that was only a memo the dot products are asked for."""
    slots, gram = state.memory.slots, state.memory.gram
    if gram.size:
        return History(slots, gram)
    names = (*(f"s{i}" for i in slots), *(f"y{i}" for i in slots))
    gram = np.zeros((len(names) + 1, len(names) + 1))
    gram[-1, -1] = state.gradient_norm**2
    if slots:
        replies = await space.perform(Dots(names, names))
        gram[:-1, :-1] = np.reshape(replies, (len(names), len(names)))
    return History(slots, gram)


async def _two_loops(space: Space, history: History) -> float:
    """Algorithm 7.4 on the vectors themselves, 2 m + 1 round trips; returns the slope."""
    slots, gram = history.slots, history.gram
    pairs = len(slots)
    rho = [1 / gram[i, pairs + i] for i in range(pairs)]
    alpha = [0.0] * pairs
    pending = [Combine("direction", ((-1.0, "gradient"),))]
    for i in reversed(range(pairs)):
        (dot,) = await space.perform(*pending, Dots((f"s{slots[i]}",), ("direction",)))
        alpha[i] = rho[i] * dot
        pending = [Combine("direction", ((1.0, "direction"), (-alpha[i], f"y{slots[i]}")))]
    if pairs:
        gamma = 1 / (rho[-1] * gram[2 * pairs - 1, 2 * pairs - 1])
        pending.append(Combine("direction", ((gamma, "direction"),)))
    for i in range(pairs):
        (dot,) = await space.perform(*pending, Dots((f"y{slots[i]}",), ("direction",)))
        terms = ((1.0, "direction"), (alpha[i] - rho[i] * dot, f"s{slots[i]}"))
        pending = [Combine("direction", terms)]
    (slope,) = await space.perform(*pending, Dots(("gradient",), ("direction",)))
    return slope


def _names(kind: str, slots: tuple[int, ...], length: int) -> list[str]:
    """Names of vectors, oldest first, filled up with zeros in front."""
    return ["zero"] * (length - len(slots)) + [f"{kind}{slot}" for slot in slots]


def _grown(known: History, rows: Matrix, memory: int) -> Matrix:
    """The Gram matrix of the known pairs, the new pair, and the new gradient.

    Args:
      rows: [3, 2 memory + 3]: s, y and gradient with the pairs, absent ones first, and with
        themselves.
    """
    old = len(known.slots)
    columns = [*range(memory - old, memory), *range(2 * memory - old, 2 * memory)]
    corner = (rows[:, -3:] + rows[:, -3:].T) / 2
    gram = bordered(known.gram[:-1, :-1], rows[:, columns].T, corner)
    grown: Matrix = gram[np.ix_(order(old), order(old))]
    return grown


def _without(history: History, pair: int) -> History:
    """Leaves one pair out."""
    pairs = len(history.slots)
    stay = [i for i in range(2 * pairs + 1) if i not in (pair, pairs + pair)]
    slots = (*history.slots[:pair], *history.slots[pair + 1 :])
    return History(slots, history.gram[np.ix_(stay, stay)])
