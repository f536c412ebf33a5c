"""Gradient descent and nonlinear conjugate gradients, with the same interface as L-BFGS."""

from __future__ import annotations

import dataclasses

from dbjax.optim.inputs import require_number
from dbjax.optim.search import search_along
from dbjax.optim.space import Combine, Dots, Space
from dbjax.optim.state import State, start
from dbjax.optim.wolfe import Wolfe, require_search


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """Steepest descent with a line search whose first trial is the previous step size.

    Attributes:
      first_step: the length of the very first trial step, in units of the parameters.
      wolfe: the line search.

    Raises:
      ValueError: `first_step` is not a number above 0, or `wolfe` is not a line search.
    """

    first_step: float = 1.0
    wolfe: Wolfe = Wolfe()

    def __post_init__(self) -> None:
        require_number("GradientDescent.first_step", self.first_step, above=0)
        require_search("GradientDescent.wolfe", self.wolfe)

    async def start(self, space: Space) -> State:
        state, _ = await start(space)
        return state

    def memo(self, state: State) -> State:
        return state

    async def iterate(self, space: Space, state: State) -> State:
        norm = state.gradient_norm
        step = state.step or self.first_step / max(norm, 1e-300)
        prepare = (Combine("direction", ((-1.0, "gradient"),)),)
        return await search_along(space, state, self.wolfe, step, -(norm**2), prepare)


@dataclasses.dataclass(frozen=True)
class ConjugateGradients:
    """Nonlinear conjugate gradients: Polak & Ribiere 1969, with beta clipped below at 0.

    The formula is eq. 5.45 of Nocedal & Wright 2006. The method restarts from the negative
    gradient whenever the new direction is not a descent direction.

    Attributes:
      first_step: the length of the very first trial step, in units of the parameters.
      wolfe: the line search, by default with curvature 0.1 where L-BFGS uses 0.9.

    Raises:
      ValueError: `first_step` is not a number above 0, or `wolfe` is not a line search.
    """

    first_step: float = 1.0
    wolfe: Wolfe = Wolfe(curvature=0.1)

    def __post_init__(self) -> None:
        require_number("ConjugateGradients.first_step", self.first_step, above=0)
        require_search("ConjugateGradients.wolfe", self.wolfe)

    async def start(self, space: Space) -> State:
        state, _ = await start(space)
        return state

    def memo(self, state: State) -> State:
        return state

    async def iterate(self, space: Space, state: State) -> State:
        square = state.gradient_norm**2
        beta, slope = 0.0, -square
        step = self.first_step / max(state.gradient_norm, 1e-300)
        if state.iteration:
            mixed, before, along = await space.perform(
                Dots(("gradient",), ("origin",)), Dots(("origin",), ("origin",)),
                Dots(("gradient",), ("direction",)),
            )  # fmt: skip
            beta = max(0.0, (square - mixed) / before)
            slope = -square + beta * along
            if slope >= 0:
                beta, slope = 0.0, -square
            # The first trial assumes the same first-order change of the loss as the last step.
            step = state.step * state.memory / slope if state.memory else step
        terms = ((-1.0, "gradient"), (beta, "direction"))
        prepare = (Combine("direction", terms if state.iteration else terms[:1]),)
        state = dataclasses.replace(state, memory=slope)
        return await search_along(space, state, self.wolfe, step, slope, prepare)
