"""The second half of every iteration: from a direction to new parameters."""

from __future__ import annotations

import dataclasses

from dbjax.optim.space import Combine, Command, Dots, Space
from dbjax.optim.state import State
from dbjax.optim.wolfe import Trial, Wolfe


async def search_along(
    space: Space,
    state: State,
    wolfe: Wolfe,
    first_step: float,
    slope: float,
    prepare: tuple[Command, ...],
) -> State:
    """Moves "params" along "direction", and leaves where it came from in "start" and "origin".

    Each trial is one list of commands (with the first goes `prepare`, which makes the
    direction), one evaluation, and one slope, fused with the gradient's norm.

    Args:
      slope: of the loss along the direction, at step 0.
      prepare: commands that make "direction".
    """
    evaluations, norms = state.evaluations, {0.0: state.gradient_norm}
    pending: tuple[Command, ...] = (
        *prepare,
        Combine("start", ((1.0, "params"),)),
        Combine("origin", ((1.0, "gradient"),)),
    )
    last = 0.0

    async def evaluate(step: float) -> Trial:
        nonlocal evaluations, pending, last
        move = Combine("params", ((1.0, "start"), (step, "direction")))
        await space.perform(*pending, move)
        pending, last = (), step
        loss = await space.evaluate()
        evaluations += 1
        slope, square = await space.perform(Dots(("gradient",), ("direction", "gradient")))
        norms[step] = square**0.5 if square >= 0 else square
        return Trial(step, loss, slope)

    found, why = await wolfe.search(evaluate, Trial(0.0, state.loss, slope), first_step)
    if found is None:
        found = Trial(0.0, state.loss, slope)
    if found.step != last:  # the best is not the last: go back to it
        if found.step:
            await evaluate(found.step)
        else:
            back = (Combine("params", ((1.0, "start"),)), Combine("gradient", ((1.0, "origin"),)))
            await space.perform(*back)
    return dataclasses.replace(
        state,
        iteration=state.iteration + 1,
        evaluations=evaluations,
        loss=found.loss,
        gradient_norm=norms[found.step],
        step=found.step,
        stop=f"line search: {why}" if why else "",
    )
