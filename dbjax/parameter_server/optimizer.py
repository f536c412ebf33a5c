"""Optax rules on shards: how a rule sees a slice, and the compiled update of a shard."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import optax

from dbjax.optim.elementwise import is_elementwise, require_elementwise, require_server_rule
from dbjax.parameter_server.partition import Partition
from dbjax.types import Params, Slice, Slices


@dataclasses.dataclass(frozen=True)
class RuleTrees:
    """How a rule sees slices.

    Attributes:
      cuts: which shard holds what.
      whole: leaves are put together again, as a rule needs that looks at several elements. That
        copies them, so other rules see every slice by itself (`Partition.trees_of`).
    """

    partition: Partition
    whole: bool

    def of(self, slices: Slices) -> list[Params]:
        if self.whole:
            return [self.partition.join(slices)]
        return [tree for slice_ in slices for tree in self.partition.trees_of(slice_)]

    def slices(self, trees: Sequence[Params], like: Slices) -> Slices:
        """The inverse of `of`; `like` has the names of the slices' pieces."""
        if self.whole:
            return self.partition.split(trees[0])
        left = list(trees)
        found = []
        for slice_ in like:
            count = self.partition.tree_count(slice_)
            mine, left = left[:count], left[count:]
            found.append(self.partition.slice_from(mine, slice_))
        return tuple(found)

    def init(self, rule: optax.GradientTransformation, slices: Slices) -> tuple[Any, ...]:
        """The rule's states, one for each tree."""
        return tuple(rule.init(tree) for tree in self.of(slices))

    def update(
        self,
        rule: optax.GradientTransformation,
        slices: Slices,
        states: tuple[Any, ...],
        gradient: Slices,
    ) -> tuple[Slices, tuple[Any, ...]]:
        """The slices and the rule's states after one update."""
        trees = self.of(slices)
        parts = zip(self.of(gradient), states, trees, strict=True)
        updates, after = zip(*(rule.update(*part) for part in parts), strict=True)
        new = [optax.apply_updates(*pair) for pair in zip(trees, updates, strict=True)]
        return self.slices(new, slices), after


def trees_for(
    rule: optax.GradientTransformation, partition: Partition, slices: Slices
) -> RuleTrees:
    """Slice by slice if the rule does the same there as on the whole, else put together.

    Args:
      slices: of all shards; only shapes and types are looked at.
    """
    params = jax.eval_shape(partition.join, slices)
    return RuleTrees(
        partition, not is_elementwise(rule, params, RuleTrees(partition, False).of(slices))
    )


def server_trees(
    rule: optax.GradientTransformation, partition: Partition, slices: Slices
) -> RuleTrees:
    """As `trees_for`, for shards that run independently of each other.

    Raises:
      ValueError: the rule cannot run on a shard, or there are several and it is not elementwise.
    """
    params = jax.eval_shape(partition.join, slices)
    if len(slices) > 1:
        trees = RuleTrees(partition, whole=False)
        require_elementwise(rule, params=params, slices=trees.of(slices))
        return trees
    require_server_rule(rule, params)
    return trees_for(rule, partition, slices)


class ServerState(NamedTuple):
    """What a shard keeps beside its slice.

    Attributes:
      rule: states of the server rule, one for each tree that it sees (`RuleTrees`).
      refused: int32 [2]: pushes refused, and their examples.
    """

    rule: tuple[Any, ...]
    refused: jax.Array


@dataclasses.dataclass(frozen=True)
class ServerRule:
    """A rule as shards apply it, compiled once for all of them.

    Attributes:
      rule: as it was given.
      trees: the pytrees that it sees; None: the slices themselves.
      init: slice -> state.
      apply: (slice, state, gradient, examples) -> (slice, state). A gradient that is not
        finite changes nothing but the count of what was refused. Nothing is donated:
        snapshots refer to the old values.
    """

    rule: optax.GradientTransformation
    trees: RuleTrees | None
    init: Callable[[Slice], ServerState]
    apply: jax.stages.Wrapped

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is compiled anew."""
        return server_rule, (self.rule, self.trees)


@functools.lru_cache(maxsize=16)
def server_rule(rule: optax.GradientTransformation, trees: RuleTrees | None = None) -> ServerRule:
    """Compiles a rule for shards."""

    # Unused values say where: a state lies where its slice does, from the first push on.
    @functools.partial(jax.jit, keep_unused=True)
    def init(params: Slice) -> ServerState:
        states = trees.init(rule, (params,)) if trees else (rule.init(params),)
        return ServerState(states, jnp.zeros(2, jnp.int32))

    def update(params: Slice, states: tuple[Any, ...], gradient: Slice) -> Any:
        if trees:
            (new,), states = trees.update(rule, (params,), states, (gradient,))
            return new, states
        updates, state = rule.update(gradient, states[0], params)
        return optax.apply_updates(params, updates), (state,)

    @jax.jit
    def apply(
        params: Slice, state: ServerState, gradient: Slice, examples: int
    ) -> tuple[Slice, ServerState]:
        finite = jnp.isfinite(sum(map(_zero_if_finite, jax.tree.leaves(gradient))))
        new = update(params, state.rule, gradient)
        params, rule_states = jax.tree.map(
            lambda n, o: jnp.where(finite, n, o), new, (params, state.rule)
        )
        refused = jnp.where(finite, 0, jnp.stack([1, examples])).astype(jnp.int32)
        return params, ServerState(rule_states, state.refused + refused)

    return ServerRule(rule, trees, init, apply)


def _zero_if_finite(values: jax.Array) -> jax.Array:
    """0 if all values are finite, else NaN: a product with zeros runs as fast as memory does."""
    if values.ndim == 0:
        return (0 * values).astype(jnp.float32)
    zeros = jnp.zeros(values.shape[-1], values.dtype)
    found = jnp.sum(jnp.matmul(values, zeros, precision=jax.lax.Precision.HIGHEST))
    return found.astype(jnp.float32)  # of leaves of all types there is one sum


@functools.lru_cache(maxsize=16)  # all replicas share one compiled step
def _compiled_local(
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
        self._init, self._apply = _compiled_local(rule, partition)
        self.state: Any = None

    def step(self, slices: Slices, gradient: Slices) -> Slices:
        """The parameters after one local step."""
        if self.state is None:
            self.state = self._init(slices)
        slices, self.state = self._apply(slices, self.state, gradient)
        return slices
