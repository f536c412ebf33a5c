"""A replica's own steps between fetches (the local line of Algorithm 1.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import optax

from dbjax.store import Fetched, Partition
from dbjax.types import Slices


@functools.lru_cache(maxsize=16)  # all replicas share one compiled step
def _compiled(
    rule: optax.GradientTransformation, cuts: Partition
) -> tuple[Callable[[Slices], Any], Callable[..., tuple[Slices, Any]]]:
    """The rule's `init` and its step, on the whole parameters."""

    @jax.jit
    def init(slices: Slices) -> Any:
        return rule.init(cuts.join(slices))

    @jax.jit
    def apply(slices: Slices, state: Any, gradient: Slices) -> tuple[Slices, Any]:
        params = cuts.join(slices)
        updates, state = rule.update(cuts.join(gradient), state, params)
        return cuts.split(optax.apply_updates(params, updates)), state

    return init, apply


@final
class LocalRule:
    """Applies an optax rule to fetched parameters, with a state of the replica's own.

    The replica has all parameters, so the rule sees them whole, and need not be elementwise.

    Attributes:
      state: of the rule; None before the first step.
    """

    def __init__(self, rule: optax.GradientTransformation, cuts: Partition) -> None:
        self._init, self._apply = _compiled(rule, cuts)
        self.state: Any = None

    def step(self, params: Fetched, gradient: Slices) -> Fetched:
        """The parameters after one local step; they keep the versions they came with."""
        if self.state is None:
            self.state = self._init(params.slices)
        slices, self.state = self._apply(params.slices, self.state, gradient)
        return dataclasses.replace(params, slices=slices)
