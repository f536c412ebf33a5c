"""Batch methods in this process: on a jax pytree, or on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.optim.lbfgs import Lbfgs
from dbjax.optim.parameters import require_parameters
from dbjax.optim.space import Command, Losses, Vector, perform
from dbjax.optim.state import Method, State, Stops

T = TypeVar("T")


@final
class LocalSpace:
    """A `Space` whose vectors are here; nothing it is asked for has to be waited for."""

    before = after = "gradient"

    def __init__(
        self, value_and_grad: Callable[[Vector], tuple[Any, Vector]], params: Vector
    ) -> None:
        self.vectors: dict[str, Vector] = {"params": params}
        self._value_and_grad = value_and_grad

    async def perform(self, *commands: Command) -> list[float]:
        replies: list[float] = perform(self.vectors, commands).tolist()
        return replies

    async def evaluate(self, sample: int, *commands: Command) -> Losses:
        perform(self.vectors, commands)
        loss, gradient = self._value_and_grad(self.vectors["params"])
        self.vectors["gradient"] = jax.tree.map(_kept, gradient)
        return Losses(*[float(loss)] * 3)


def _kept(leaf: Any) -> Any:
    """A gradient that stays as it is: functions of NumPy arrays may use theirs again."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def minimise(
    loss: Callable[[Vector], Any],
    params: Vector,
    method: Method | None = None,
    stops: Stops | None = None,
    *,
    value_and_grad: Callable[[Vector], tuple[Any, Vector]] | None = None,
) -> tuple[Vector, State]:
    """Minimises a loss; returns the parameters, and where and why it stopped.

    Args:
      loss: params -> scalar, differentiable by jax.
      method: `Lbfgs()` by default.
      value_and_grad: instead of jax's, for functions of NumPy arrays.

    Raises:
      TypeError: a parameter is no array of floating-point numbers, or state of a model.
    """
    require_parameters(params)
    if value_and_grad is None:
        params = jax.tree.map(jnp.asarray, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(dtype, jnp.floating):
            name = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{name} is {dtype}; make it an array of floats")
    chosen = value_and_grad or jax.jit(jax.value_and_grad(loss))
    space = LocalSpace(chosen, params)
    state = _complete(_minimise(space, method or Lbfgs(), stops or Stops()))
    return space.vectors["params"], state


async def _minimise(space: LocalSpace, method: Method, stops: Stops) -> State:
    state = stops.check(await method.start(space))
    while not state.stop:
        state = stops.check(await method.iterate(space, state))
    return state


def _complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise RuntimeError("a method in this process waited for something")
