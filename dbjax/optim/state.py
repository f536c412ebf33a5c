"""The state of a batch method between two iterations, and its stopping criteria."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

from dbjax.optim.inputs import require_integer, require_number
from dbjax.optim.space import Command, Dots, Space


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a coordinator: a few numbers, from which it can be restarted.

    Attributes:
      iteration: the number of finished iterations.
      evaluations: the number of evaluations of the loss and its gradient so far.
      loss: the loss at "params" over the last sample.
      shared_loss: the loss at "params" over the examples that the last sample shares with the next.
      decrease: how much the last iteration decreased the loss, measured before and after over the
        same data; NaN if no losses were compared.
      gradient_norm: the Euclidean norm of the gradient at "params".
      step: the step of the last line search, in multiples of the direction.
      memory: what the method remembers besides the vectors.
      stop: the reason why the method stopped; "" while it is running.
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
    """Stopping criteria of a batch method. `State.stop` names the first one that holds.

    Attributes:
      gradient_norm: the method stops when the norm of the gradient is at most this.
      relative_decrease: the method stops when decrease / max(|loss|, 1) of one iteration is at
        most this. A negative value disables the criterion.
      iterations: the maximum number of iterations; None means no limit.
      evaluations: the maximum number of evaluations. A line search in progress is completed.

    Raises:
      ValueError: a setting has the wrong type or is out of range.
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
        """Returns the state with its field `stop` filled in if the method should stop.

        Besides the criteria above, a loss or a gradient norm that is not finite stops the method.
        """
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
    """The interface of a batch method, whose settings are its fields."""

    async def start(self, space: Space) -> State:
        """Evaluates the loss at "params", and returns the initial state."""

    async def iterate(self, space: Space, state: State) -> State:
        """Runs one iteration: chooses a direction and searches along it.

        Args:
          space: the vectors and the loss. "params" and "gradient" are replaced by the new ones.
          state: the state after the previous iteration.

        Returns:
          The new state.
        """

    def memo(self, state: State) -> State:
        """Returns the part of the state from which, given the vectors, the method can resume."""


async def start(space: Space, *commands: Command) -> tuple[State, float]:
    """Makes the first evaluation, then performs commands.

    Returns:
      The initial state and the squared norm of the gradient.
    """
    losses = await space.evaluate(0)
    (square,) = await space.perform(*commands, Dots(("gradient",), ("gradient",)))
    return State(0, 1, losses.total, losses.after, norm(square)), square


def norm(square: float) -> float:
    """Returns the square root; NaN and negative numbers are returned unchanged."""
    return square**0.5 if square >= 0 else square
