"""Runs batch methods within this process, on a JAX pytree or on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.optim.inputs import (
    gradient_like,
    outline,
    real_scalar,
    require_finite,
    require_floats,
    require_loss,
    require_parameters,
)
from dbjax.optim.lbfgs import Lbfgs
from dbjax.optim.space import Command, Losses, Vector, perform
from dbjax.optim.state import Method, State, Stops

T = TypeVar("T")


@final
class LocalSpace:
    """A `Space` whose vectors are in this process, so its coroutines never wait.

    Args:
      value_and_grad: (params) -> (loss, gradient).
      params: the initial parameters.
    """

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
        loss, self.vectors["gradient"] = self._value_and_grad(self.vectors["params"])
        return Losses(*[float(loss)] * 3)


def minimise(
    loss: Callable[[Vector], Any],
    params: Vector,
    method: Method | None = None,
    stops: Stops | None = None,
    *,
    value_and_grad: Callable[[Vector], tuple[Any, Vector]] | None = None,
) -> tuple[Vector, State]:
    """Minimises a loss with a batch method.

    Args:
      loss: params -> scalar, differentiable by JAX. It is not called, and may be None, if
        `value_and_grad` is given.
      params: the initial parameters, a pytree of finite floating-point arrays. Without
        `value_and_grad`, leaves may also be Python floats.
      method: the batch method; `Lbfgs()` by default.
      stops: the stopping criteria; `Stops()` by default.
      value_and_grad: a replacement for JAX's differentiation, for functions of NumPy arrays:
        params -> (loss, gradient). The loss is one real number. The gradient has the structure
        and shapes of the parameters and is converted to their floating-point types.

    Returns:
      The final parameters, and the final `State`, whose field `stop` says why the method stopped.

    Raises:
      TypeError: a parameter is not a floating-point array or belongs to a model's state, or an
        argument has the wrong type.
      ValueError: the parameters are empty or not finite, or `loss` or `value_and_grad` returns
        something other than described above.
    """
    method, stops = Lbfgs() if method is None else method, Stops() if stops is None else stops
    _require_arguments(loss, method, stops, value_and_grad)
    require_parameters(params)
    if value_and_grad is None:
        params = jax.tree.map(_array_of, params)
    require_floats(params)
    require_finite(params)
    if value_and_grad is None:
        params = jax.tree.map(jnp.asarray, params)
        chosen = _differentiated(loss, params)
    else:
        params = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.ndarray) else x, params)
        chosen = _checked(value_and_grad)
    space = LocalSpace(chosen, params)
    state = _complete(_minimise(space, method, stops))
    return space.vectors["params"], state


def _require_arguments(loss: Any, method: Any, stops: Any, value_and_grad: Any) -> None:
    if loss is None and value_and_grad is None:
        raise TypeError("loss=None needs value_and_grad; give one of the two functions")
    for name, function in (("loss", loss), ("value_and_grad", value_and_grad)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}={function!r} must be a function of the parameters")
    if not isinstance(method, Method) or isinstance(method, type):
        raise TypeError(f"method={method!r} must be a batch method, such as Lbfgs()")
    if not isinstance(stops, Stops):
        raise TypeError(f"stops={stops!r} must be Stops(...)")


def _array_of(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, float) else leaf


def _differentiated(loss: Callable[[Vector], Any], params: Vector) -> Callable[..., Any]:
    """Returns a compiled function that computes the loss and its gradient."""
    require_loss(jax.eval_shape(loss, params))
    return jax.jit(jax.value_and_grad(loss))


def _checked(value_and_grad: Callable[[Vector], Any]) -> Callable[..., Any]:
    """Wraps a user's function so that its results are checked."""

    def checked(params: Vector) -> tuple[float, Vector]:
        # The user's function may modify its arguments, so it gets copies.
        own = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, params)
        found = value_and_grad(own)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise ValueError(
                f"value_and_grad returned {outline(found)}; it must return (loss, gradient)"
            )
        loss = real_scalar(found[0], "the loss of value_and_grad")
        return loss, gradient_like(found[1], params, "the gradient of value_and_grad")

    return checked


async def _minimise(space: LocalSpace, method: Method, stops: Stops) -> State:
    state = stops.check(await method.start(space))
    while not state.stop:
        state = stops.check(await method.iterate(space, state))
    return state


def _complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits, and returns its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise RuntimeError("the method awaited something other than its space")
