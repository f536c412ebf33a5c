"""The line search of every batch method: moves the parameters along a direction."""

from __future__ import annotations

import dataclasses
import math
from typing import final

from dbjax.optim.space import Combine, Command, Dots, Losses, Space
from dbjax.optim.state import State, norm
from dbjax.optim.wolfe import Trial, Wolfe


async def search_along(
    space: Space,
    state: State,
    wolfe: Wolfe,
    first_step: float,
    slope: float,
    prepare: tuple[Command, ...],
) -> State:
    """Moves "params" along "direction" by a step that satisfies the line search.

    The previous parameters are left in "start" and their gradient in "origin". A trial consists of
    one list of commands (preceded by `prepare` in the first trial), one evaluation, and one
    request for the slope and the norm of the gradient.

    Trials are evaluated over the next sample of the data. Losses of two samples can be compared
    only over the examples that both share, so the search minimises the loss over these (which are
    all the data, unless the method sub-samples). If this loss does not decrease along the
    direction at step 0, the first step is taken without a search. If a search over a part of the
    data fails, half the shortest step that it tried is taken. See `_unsearched`.

    Args:
      space: the vectors and the loss.
      state: the state before this iteration.
      wolfe: the line search.
      first_step: the first trial step, in multiples of "direction".
      slope: the derivative of the loss along the direction, at step 0.
      prepare: commands that compute "direction".

    Returns:
      The state after this iteration. If no step was found, its `stop` says why, and "params" and
      "gradient" are the previous ones.
    """
    walk = _Walk(space, state)
    sampled = space.after != "gradient"
    if sampled:
        (slope,) = await space.perform(*prepare, Dots((space.after,), ("direction",)))
        prepare = ()
    walk.pending = (*prepare, *walk.pending)
    if sampled and not slope < 0:
        return await _unsearched(walk, first_step, wolfe.max_trials)
    begin = Trial(0.0, state.shared_loss, slope)
    found, why = await wolfe.search(walk.trial, begin, first_step)
    if found is None and sampled and walk.last:
        return await _unsearched(walk, walk.shortest() / 2, wolfe.max_trials)
    if found is None:
        await walk.back()
        return walk.ended(begin, stop=f"line search: {why}")
    if found.step != walk.last:  # the best trial is not the last one, so go back to it
        await walk.trial(found.step)
    return walk.ended(found)


async def _unsearched(walk: _Walk, step: float, max_trials: int) -> State:
    """Takes a step without a search, halving it until the loss is finite.

    Berahas, Nocedal & Takac 2016, "A Multi-Batch L-BFGS Method for Machine Learning", never search
    at all.
    """
    for _ in range(max_trials):
        trial = await walk.trial(step)
        if trial.finite():
            return walk.ended(trial, compared=False)
        step /= 2
    await walk.back()
    return walk.ended(
        Trial(0.0, 0.0, 0.0), compared=False, stop=f"no finite loss in {max_trials} trials"
    )


@final
class _Walk:
    """Evaluates trials along the direction, and remembers their results."""

    def __init__(self, space: Space, state: State) -> None:
        self.space, self.state, self.last = space, state, 0.0
        self.evaluations = state.evaluations
        self.pending: tuple[Command, ...] = (
            Combine("start", ((1.0, "params"),)),
            Combine("origin", ((1.0, space.after),)),
        )
        here = Losses(state.loss, math.nan, state.shared_loss)
        self._seen = {0.0: (here, state.gradient_norm)}

    async def trial(self, step: float) -> Trial:
        move = Combine("params", ((1.0, "start"), (step, "direction")))
        losses = await self.space.evaluate(self.state.iteration + 1, *self.pending, move)
        self.pending, self.last = (), step
        self.evaluations += 1
        slope, square = await self.space.perform(
            Dots((self.space.before,), ("direction",)), Dots(("gradient",), ("gradient",))
        )
        self._seen[step] = (losses, norm(square))
        return Trial(step, losses.before, slope)

    def shortest(self) -> float:
        """Returns the shortest step that was tried."""
        return min(step for step in self._seen if step > 0)

    async def back(self) -> None:
        """Restores the parameters and the gradient from before the search."""
        await self.space.perform(
            *self.pending,
            Combine("params", ((1.0, "start"),)),
            Combine("gradient", ((1.0, "origin"),)),
        )

    def ended(self, found: Trial, *, compared: bool = True, stop: str = "") -> State:
        losses, gradient_norm = self._seen[found.step]
        compared = compared and found.step > 0
        decrease = self.state.shared_loss - losses.before if compared else math.nan
        return dataclasses.replace(
            self.state,
            iteration=self.state.iteration + 1,
            evaluations=self.evaluations,
            loss=losses.total,
            shared_loss=losses.after,
            decrease=decrease,
            gradient_norm=gradient_norm,
            step=found.step,
            stop=stop,
        )
