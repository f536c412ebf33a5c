"""Applies optax rules on shards: the pytrees that a rule sees, and the compiled update."""

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
    """Converts slices to the pytrees that an optax rule sees, and back.

    Attributes:
      partition: the partition of the parameters into slices.
      whole: whether leaves are joined again, for a rule that is not elementwise. Joining copies
        the leaves, so elementwise rules see every slice by itself (`Partition.trees_of`).
    """

    partition: Partition
    whole: bool

    def of(self, slices: Slices) -> list[Params]:
        """Returns the pytrees of the slices: one if `whole`, else at least one for each slice."""
        if self.whole:
            return [self.partition.join(slices)]
        return [tree for slice_ in slices for tree in self.partition.trees_of(slice_)]

    def slices(self, trees: Sequence[Params], like: Slices) -> Slices:
        """Inverts `of`.

        Args:
          trees: the pytrees that the rule saw.
          like: slices whose pieces have the same names.
        """
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
        """Returns the rule's initial states, one for each tree."""
        return tuple(rule.init(tree) for tree in self.of(slices))

    def update(
        self,
        rule: optax.GradientTransformation,
        slices: Slices,
        states: tuple[Any, ...],
        gradient: Slices,
    ) -> tuple[Slices, tuple[Any, ...]]:
        """Applies the rule once.

        Args:
          rule: the optax rule.
          slices: the parameters.
          states: the rule's states, one for each tree.
          gradient: the gradient, in slices like the parameters.

        Returns:
          The new slices, and the rule's new states.
        """
        trees = self.of(slices)
        parts = zip(self.of(gradient), states, trees, strict=True)
        updates, after = zip(*(rule.update(*part) for part in parts), strict=True)
        new = [optax.apply_updates(*pair) for pair in zip(trees, updates, strict=True)]
        return self.slices(new, slices), after


def trees_for(
    rule: optax.GradientTransformation, partition: Partition, slices: Slices
) -> RuleTrees:
    """Returns trees of single slices if the rule is elementwise, otherwise the joined tree.

    Args:
      rule: the optax rule; it is elementwise if the partition is not complete.
      partition: the partition of the parameters into slices.
      slices: the slices of all shards; only their shapes and dtypes are used.
    """
    if not partition.complete:
        return RuleTrees(partition, whole=False)
    params = jax.eval_shape(partition.join, slices)
    return RuleTrees(
        partition, not is_elementwise(rule, params, RuleTrees(partition, False).of(slices))
    )


def checked_trees(
    rule: optax.GradientTransformation, partition: Partition, slices: Slices
) -> RuleTrees:
    """Checks that a rule can run on these shards, and returns the pytrees that it sees there.

    With several shards the rule must be elementwise, since they know nothing of each other.

    Args:
      rule: the optax rule.
      partition: the partition of the parameters into slices.
      slices: the slices of all shards; only their shapes and dtypes are used.

    Raises:
      ValueError: the rule cannot run on a shard, or it is not elementwise and there are several
        shards.
    """
    params = jax.eval_shape(partition.join, slices)
    if len(slices) > 1:
        trees = RuleTrees(partition, whole=False)
        require_elementwise(rule, params=params, slices=trees.of(slices))
        return trees
    require_server_rule(rule, params)
    return trees_for(rule, partition, slices)


class ServerState(NamedTuple):
    """The state of a server rule on one shard.

    Attributes:
      rule: the states of the optax rule, one for each tree that it sees (`RuleTrees`).
      refused: the number of refused pushes, and of their examples; int32 [2].
    """

    rule: tuple[Any, ...]
    refused: jax.Array


@dataclasses.dataclass(frozen=True)
class ServerRule:
    """An optax rule as shards apply it, compiled once for all of them.

    Attributes:
      rule: the optax rule.
      trees: the pytrees that the rule sees; None: the slices themselves.
      init: slice -> state.
      apply: (slice, state, gradient, examples) -> (slice, state). A gradient with a value that is
        not finite is refused: it changes only the count of refused pushes. No argument is donated,
        because snapshots refer to the old values.
    """

    rule: optax.GradientTransformation
    trees: RuleTrees | None
    init: Callable[[Slice], ServerState]
    apply: jax.stages.Wrapped

    def compile_for(self, params: Slice, state: ServerState) -> None:
        """Compiles the update of a slice."""
        self.apply.lower(params, state, params, 1).compile()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what the rule is made of; another process compiles it again."""
        return server_rule, (self.rule, self.trees)


@functools.lru_cache(maxsize=16)
def server_rule(rule: optax.GradientTransformation, trees: RuleTrees | None = None) -> ServerRule:
    """Compiles an optax rule for shards; equal arguments share one compiled rule.

    Args:
      rule: the optax rule.
      trees: the pytrees that the rule sees; None: the slices themselves.
    """

    # Unused arguments determine the placement: a state is on its slice's device from the beginning.
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
    """Returns 0 if all values are finite, else NaN.

    It is a product with zeros, which is as fast as reading the memory.
    """
    if values.ndim == 0:
        return (0 * values).astype(jnp.float32)
    zeros = jnp.zeros(values.shape[-1], values.dtype)
    found = jnp.sum(jnp.matmul(values, zeros, precision=jax.lax.Precision.HIGHEST))
    return found.astype(jnp.float32)  # leaves of all dtypes are added up


@functools.lru_cache(maxsize=16)  # all replicas share one compiled step
def compiled_local(
    rule: optax.GradientTransformation, partition: Partition
) -> tuple[Callable[[Slices], Any], Callable[..., tuple[Slices, Any]]]:
    """Compiles the rule's `init` and its step."""

    @jax.jit
    def init(slices: Slices) -> Any:
        return trees_for(rule, partition, slices).init(rule, slices)

    @jax.jit
    def apply(slices: Slices, states: Any, gradient: Slices) -> tuple[Slices, Any]:
        return trees_for(rule, partition, slices).update(rule, slices, states, gradient)

    return init, apply


@final
class LocalOptimizer:
    """Applies an optax rule to a replica's own parameters between fetches.

    A replica has all of the parameters, so its rule need not be elementwise, unless the replica
    spans several processes.

    Args:
      rule: the optax rule.
      partition: the partition of the parameters into slices.

    Attributes:
      state: the rule's state; None before the first step.
    """

    def __init__(self, rule: optax.GradientTransformation, partition: Partition) -> None:
        self._init, self._apply = compiled_local(rule, partition)
        self.state: Any = None

    def step(self, slices: Slices, gradient: Slices) -> Slices:
        """Returns the parameters after one local step, and updates the rule's state.

        Args:
          slices: the parameters, a slice for each shard.
          gradient: the gradient, a slice for each shard.
        """
        if self.state is None:
            self.state = self._init(slices)
        slices, self.state = self._apply(slices, self.state, gradient)
        return slices
