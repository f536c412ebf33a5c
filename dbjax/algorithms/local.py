"""A replica's own steps between fetches (the local line of Algorithm 1.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import optax

from dbjax.store import Fetched
from dbjax.types import Slices


@functools.lru_cache(maxsize=16)  # all replicas share one compiled step
def _compiled(rule: optax.GradientTransformation) -> Callable[..., tuple[Slices, Any]]:
    @jax.jit
    def apply(slices: Slices, state: Any, gradient: Slices) -> tuple[Slices, Any]:
        updates, state = rule.update(gradient, state, slices)
        return optax.apply_updates(slices, updates), state

    return apply


@final
class LocalRule:
    """Applies an optax rule to fetched parameters, with a state of the replica's own.

    Attributes:
      state: of the rule; None before the first step.
    """

    def __init__(self, rule: optax.GradientTransformation) -> None:
        self._rule = rule
        self._apply = _compiled(rule)
        self.state: Any = None

    def step(self, params: Fetched, gradient: Slices) -> Fetched:
        """The parameters after one local step; they keep the versions they came with."""
        if self.state is None:
            self.state = self._rule.init(params.slices)
        slices, self.state = self._apply(params.slices, self.state, gradient)
        return dataclasses.replace(params, slices=slices)
