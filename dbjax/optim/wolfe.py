"""A line search for the strong Wolfe conditions that needs only losses and slopes.

It implements algorithms 3.5 (bracketing) and 3.6 (zoom) of Nocedal & Wright 2006, "Numerical
Optimization", with cubic interpolation. Near the limit of the loss's precision it uses the
approximate Wolfe conditions of Hager & Zhang 2005, which compare slopes instead of losses. The
search runs only on the coordinator, which tells the other nodes the step, so no two nodes can
decide differently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import Any

from dbjax.optim.inputs import require_integer, require_number


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a line search.

    Attributes:
      step: the step, in multiples of the direction.
      loss: the loss at that step.
      slope: the derivative of the loss with respect to the step.
    """

    step: float
    loss: float
    slope: float

    def finite(self) -> bool:
        """Returns True if both the loss and the slope are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)


def require_search(name: str, search: Any) -> None:
    """Raises ValueError unless `search` is a line search such as `Wolfe()`."""
    if isinstance(search, type) or not callable(getattr(search, "search", None)):
        raise ValueError(f"{name}={search!r} must be a line search, such as Wolfe()")


@dataclasses.dataclass(frozen=True)
class Wolfe:
    """A line search for the strong Wolfe conditions, and its settings.

    Attributes:
      decrease: the constant c1. The loss must decrease by at least this fraction of what the
        initial slope predicts.
      curvature: the constant c2. The absolute slope must decrease to at most this fraction of the
        initial one.
      loss_error: the relative error of the loss. Smaller differences are treated as noise.
      max_trials: the maximum number of evaluations.
      largest_growth: the maximum factor by which the step grows from one trial to the next while
        bracketing.

    Raises:
      ValueError: a setting has the wrong type, or 0 < decrease < curvature < 1 does not hold, or
        another setting is out of range.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    loss_error: float = 1e-9
    max_trials: int = 20
    largest_growth: float = 10.0

    def __post_init__(self) -> None:
        for name in ("decrease", "curvature"):
            require_number(f"Wolfe.{name}", getattr(self, name))
        if not 0 < self.decrease < self.curvature < 1:
            raise ValueError(
                f"Wolfe: needs 0 < decrease={self.decrease} < curvature={self.curvature} < 1"
            )
        require_number("Wolfe.loss_error", self.loss_error, least=0)
        require_integer("Wolfe.max_trials", self.max_trials, least=1)
        require_number("Wolfe.largest_growth", self.largest_growth, above=1)

    async def search(
        self, evaluate: Callable[[float], Awaitable[Trial]], start: Trial, first_step: float
    ) -> tuple[Trial | None, str]:
        """Searches for a step.

        Args:
          evaluate: step -> trial. The trial that is returned need not be the last one evaluated.
          start: the trial at step 0, whose slope must be negative.
          first_step: the first step to try, above 0.

        Returns:
          An accepted trial and "", or None and the reason why none was found. If no trial satisfies
          the conditions, the search accepts one that merely decreases the loss.
        """
        if not start.slope < 0:
            return None, f"the slope {start.slope:.3g} along the direction is not negative"
        if not first_step > 0:
            return None, f"the first step {first_step:.3g} is not above 0"
        low, high, step = start, None, first_step  # type: Trial, Trial | None, float
        for _ in range(self.max_trials):
            trial = await evaluate(step)
            if self._accepts(trial, start):
                return trial, ""
            worse = not trial.finite() or not self._decreased(trial, start)
            if worse or (trial.loss >= low.loss and low.step > 0):
                high = trial
            elif trial.slope * ((high.step if high else math.inf) - trial.step) < 0:
                low = trial
            else:
                low, high = trial, (low if trial.slope > 0 or high else None)
            if high is None:
                step = min(self._beyond(low, start), self.largest_growth * low.step)
            elif abs(high.step - low.step) <= 1e-12 * max(high.step, low.step):
                break
            else:
                step = _between(low, high)
        if low.step > 0 and low.loss < start.loss:
            return low, ""  # the loss decreases, although less than the conditions require
        return None, f"no lower loss found in {self.max_trials} trials along the direction"

    def _decreased(self, trial: Trial, start: Trial) -> bool:
        return trial.loss <= start.loss + self.decrease * trial.step * start.slope or (
            trial.loss <= start.loss + self.loss_error * abs(start.loss)
            and trial.slope <= (2 * self.decrease - 1) * start.slope
        )

    def _accepts(self, trial: Trial, start: Trial) -> bool:
        flat = abs(trial.slope) <= -self.curvature * start.slope
        return trial.finite() and flat and self._decreased(trial, start)

    def _beyond(self, low: Trial, start: Trial) -> float:
        """Extrapolates the slope linearly from `start` through `low` to its zero."""
        fall = (low.slope - start.slope) / low.step
        return max(1.5 * low.step, low.step - low.slope / fall) if fall > 0 else math.inf


def _between(low: Trial, high: Trial) -> float:
    """Returns the minimum of the cubic through both trials, kept away from either end."""
    width = high.step - low.step
    share = 0.1 if not high.finite() else _cubic_share(low, high, width)
    return low.step + min(0.9, max(0.1, share)) * width


def _cubic_share(low: Trial, high: Trial, width: float) -> float:
    """Returns the minimum of the cubic as a fraction of the way from `low` to `high`.

    Nocedal & Wright 2006, eq. 3.59.
    """
    d1 = low.slope + high.slope - 3 * (low.loss - high.loss) / (low.step - high.step)
    square = d1 * d1 - low.slope * high.slope
    if not square >= 0:
        return 0.5
    d2 = math.copysign(math.sqrt(square), width)
    below = high.slope - low.slope + 2 * d2
    return 1 - (high.slope + d2 - d1) / below if below else 0.5
