"""L-BFGS: Liu & Nocedal 1989; Nocedal & Wright 2006, algorithms 7.4 and 7.5.

The vectors of the history stay where the parameters are. The search direction is a linear
combination of 2 m + 1 vectors whose coefficients depend only on the dot products of these vectors
(Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce"). Each iteration needs O(m) new dot
products, which are computed in one round trip.
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
    """The coordinator's record of the pairs (s, y).

    Attributes:
      slots: the slot numbers of the pairs, oldest first; slot 3 consists of the vectors "s3" and
        "y3". There is one slot more than the pairs that are kept, so that a new pair that turns
        out to be unusable does not overwrite an older one.
      gram: the Gram matrix of s (oldest first), y (oldest first) and the gradient, [2 pairs + 1,
        2 pairs + 1]. It is empty if the dot products still have to be requested.
    """

    slots: tuple[int, ...] = ()
    gram: Matrix = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))


@dataclasses.dataclass(frozen=True)
class Lbfgs:
    """Limited-memory BFGS with a strong Wolfe line search.

    Paper: section 4.2 (the optimiser of Sandblaster L-BFGS).

    Attributes:
      memory: the number of pairs that are kept, m.
      vector_free: True computes the direction in one round trip. False runs the two-loop
        recursion on the vectors themselves, which takes 2 m + 1 more round trips.
      curvature: a pair is kept only if s . y > curvature |s|^2 (proof 15).
      damped: whether to apply Powell's damping, which mixes y with s / gamma, to a pair that
        fails the curvature condition, instead of dropping the pair.
      first_step: the maximum length of the very first trial step, in units of the parameters. The
        step is never longer than the gradient.
      wolfe: the line search.

    Raises:
      ValueError: a setting has the wrong type or is out of range.
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
        """Returns the state without the dot products, which can be recomputed from the vectors."""
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
        """Adds the pair of the last iteration to the history, if it is usable."""
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
        """Damps the newest pair: y <- theta y + (1 - theta) B s.

        Powell 1978, with B = `scale` times the identity.
        """
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
        """Returns the command that computes the direction.

        Missing pairs are replaced by zero vectors, so that the command is compiled only once.
        """
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
    """Runs the two-loop recursion on coefficients instead of vectors.

    The initial H is s . y / y . y of the newest pair, times the identity.

    Args:
      gram: the dot products of s (oldest first), y (oldest first) and the gradient, a NumPy or
        JAX matrix [2 m + 1, 2 m + 1]. Missing pairs are rows and columns of zeros before the
        others; their coefficients are 0.

    Returns:
      The coefficients of these vectors in the direction -H gradient, [2 m + 1].
    """
    pairs = len(gram) // 2
    unit = np.eye(len(gram), dtype=gram.dtype)
    sy, yy = gram.diagonal(pairs)[:pairs], gram.diagonal()[pairs:-1]
    sy, yy = sy + (sy == 0), yy + (sy == 0)  # missing pairs get 1, so that quotients are 0 and 1
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
    """Returns the history. If the state is only a memo, requests the missing dot products."""
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
    """Runs algorithm 7.4 on the vectors themselves, in 2 m + 1 round trips.

    Returns:
      The slope of the loss along "direction".
    """
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
    """Returns the names of vectors, oldest first, padded at the front with "zero"."""
    return ["zero"] * (length - len(slots)) + [f"{kind}{slot}" for slot in slots]


def _grown(known: History, rows: Matrix, memory: int) -> Matrix:
    """Returns the Gram matrix of the known pairs, the new pair and the new gradient.

    Args:
      known: the history before the new pair.
      rows: dot products of the new s, y and gradient with the pairs (missing pairs first) and
        with each other, [3, 2 memory + 3].
      memory: the number of pairs that are kept.
    """
    old = len(known.slots)
    columns = [*range(memory - old, memory), *range(2 * memory - old, 2 * memory)]
    corner = (rows[:, -3:] + rows[:, -3:].T) / 2
    gram = bordered(known.gram[:-1, :-1], rows[:, columns].T, corner)
    grown: Matrix = gram[np.ix_(order(old), order(old))]
    return grown


def _without(history: History, pair: int) -> History:
    """Returns the history without one pair, given by its index from the oldest."""
    pairs = len(history.slots)
    stay = [i for i in range(2 * pairs + 1) if i not in (pair, pairs + pair)]
    slots = (*history.slots[:pair], *history.slots[pair + 1 :])
    return History(slots, history.gram[np.ix_(stay, stay)])
