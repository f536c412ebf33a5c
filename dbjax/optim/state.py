"""Where a batch method stands between two iterations, and when it stops."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

from dbjax.optim.inputs import require_integer, require_number
from dbjax.optim.space import Command, Dots, Space


@dataclasses.dataclass(frozen=True)
class State:
    """All that a coordinator knows; a few numbers, so that it can be restarted from them.

    Attributes:
      iteration: finished ones.
      evaluations: of the loss and its gradient, so far.
      loss: at "params", over the last sample.
      shared_loss: at "params", over what that sample shares with the next.
      decrease: of the loss in the last iteration, before and after over the same data; NaN
        where nothing was compared.
      gradient_norm: Euclidean.
      step: of the last line search.
      memory: what the method remembers beside the vectors.
      stop: why it stopped; "" while it goes on.
    """

    iteration: int
    evaluations: int
    loss: float
    shared_loss: float
    gradient_norm: float
    decrease: float = math.nan
    step: float = 0.0
    memory: Any = None
    stop: str = ""


@dataclasses.dataclass(frozen=True)
class Stops:
    """When to stop; the first that holds is named in `State.stop`.

    Attributes:
      gradient_norm: at which the parameters count as stationary.
      relative_decrease: of the loss in one iteration, at which it counts as converged:
        decrease / max(|loss|, 1). Below 0: never.
      iterations: at most; None: any number.
      evaluations: at most; a line search that is under way is finished.
    """

    gradient_norm: float = 1e-5
    relative_decrease: float = 1e-9
    iterations: int | None = None
    evaluations: int = 10_000

    def __post_init__(self) -> None:
        require_number("Stops.gradient_norm", self.gradient_norm, least=0)
        require_number("Stops.relative_decrease", self.relative_decrease)
        require_integer("Stops.iterations", self.iterations, least=0, or_none=True)
        require_integer("Stops.evaluations", self.evaluations, least=1)

    def check(self, state: State) -> State:
        """The state, with the reason to stop if there is one."""
        if state.stop:
            return state
        reason = ""
        if not math.isfinite(state.loss):
            reason = f"the loss is {state.loss} at the start"
        elif not math.isfinite(state.gradient_norm):
            reason = (
                f"the gradient's norm is {state.gradient_norm} where the loss is {state.loss:.3g}: "
                "it is not finite, or its square overflows; scale the loss down"
            )
        elif state.gradient_norm <= self.gradient_norm:
            reason = f"gradient norm {state.gradient_norm:.3g} <= {self.gradient_norm:g}"
        elif state.decrease <= self.relative_decrease * max(abs(state.loss), 1.0):
            reason = f"relative decrease <= {self.relative_decrease:g}"
        elif self.iterations is not None and state.iteration >= self.iterations:
            reason = f"{self.iterations} iterations"
        elif state.evaluations >= self.evaluations:
            reason = f"{self.evaluations} evaluations"
        return dataclasses.replace(state, stop=reason)


@runtime_checkable
class Method(Protocol):
    """A batch method; its settings are its fields."""

    async def start(self, space: Space) -> State:
        """Evaluates at "params"."""

    async def iterate(self, space: Space, state: State) -> State:
        """One iteration: a direction, a line search, new "params" and "gradient"."""

    def memo(self, state: State) -> State:
        """As much of the state as it needs to go on from the vectors, and no more."""


async def start(space: Space, *commands: Command) -> tuple[State, float]:
    """The first evaluation, and the square of the gradient; then performs the commands."""
    losses = await space.evaluate(0)
    (square,) = await space.perform(*commands, Dots(("gradient",), ("gradient",)))
    return State(0, 1, losses.total, losses.after, norm(square)), square


def norm(square: float) -> float:
    """The root; what is not a number stays so."""
    return square**0.5 if square >= 0 else square
