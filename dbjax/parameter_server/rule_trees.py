"""The pytrees that an optax rule sees, which have the user's own structure and paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

from dbjax.optim.elementwise import is_elementwise, require_elementwise, require_server_rule
from dbjax.parameter_server.partition import Partition
from dbjax.types import Params, Slices


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
