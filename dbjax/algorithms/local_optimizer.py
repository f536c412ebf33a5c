"""A replica's own steps between fetches (the local line of Algorithm 1.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import optax

from dbjax.parameter_server import Fetched, Partition
from dbjax.parameter_server.rule_trees import trees_for
from dbjax.types import Slices


@functools.lru_cache(maxsize=16)  # all replicas share one compiled step
def _compiled(
    rule: optax.GradientTransformation, partition: Partition
) -> tuple[Callable[[Slices], Any], Callable[..., tuple[Slices, Any]]]:
    """The rule's `init` and its step."""

    @jax.jit
    def init(slices: Slices) -> Any:
        return trees_for(rule, partition, slices).init(rule, slices)

    @jax.jit
    def apply(slices: Slices, states: Any, gradient: Slices) -> tuple[Slices, Any]:
        return trees_for(rule, partition, slices).update(rule, slices, states, gradient)

    return init, apply


@final
class LocalOptimizer:
    """Applies an optax rule to fetched parameters, with a state of the replica's own.

    A replica has all of the parameters, so its rule need not be elementwise.

    Attributes:
      state: of the rule; None before the first step.
    """

    def __init__(self, rule: optax.GradientTransformation, partition: Partition) -> None:
        self._init, self._apply = _compiled(rule, partition)
        self.state: Any = None

    def step(self, params: Fetched, gradient: Slices) -> Fetched:
        """The parameters after one local step; they keep the versions they came with."""
        if self.state is None:
            self.state = self._init(params.slices)
        slices, self.state = self._apply(params.slices, self.state, gradient)
        return dataclasses.replace(params, slices=slices)
