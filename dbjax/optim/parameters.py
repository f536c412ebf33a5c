"""What may stand among parameters: nothing that a model changes by itself.

A rule would update and decay running statistics, random keys and counts as if they were weights,
and variables that are shared would come apart. Of libraries of networks only flax says which
leaf is what, and it is asked only where it is imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax

from dbjax.optim.inputs import leaf_name

_SPLIT = "`graphdef, params, rest = nnx.split(model, nnx.Param, ...)`"
_OWN_STATISTICS = "normalise by each batch's own statistics, or use LayerNorm or GroupNorm"


def require_parameters(params: Any) -> None:
    """Raises TypeError, of one line, if a leaf is known to be no parameter.

    Such are variables of NNX but for `nnx.Param`, arrays of an NNX module that are no variables,
    a variable that stands in two places, and Linen's collection `batch_stats`, also flattened.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        if any("batch_stats" in _parts(key) for key in path):
            raise TypeError(
                f"{leaf_name('params', path)} is a running statistic, which no rule may change: "
                f"give variables['params'] alone, and {_OWN_STATISTICS} (docs/models.md)"
            )
    if (nnx := sys.modules.get("flax.nnx")) is not None:
        _require_params_of_nnx(nnx, params)


def _parts(key: Any) -> tuple[Any, ...]:
    """A key of a path, or those that flax has made one of: a tuple, or joined by slashes."""
    name = getattr(key, "key", getattr(key, "name", None))
    return name if isinstance(name, tuple) else tuple(str(name).split("/"))


def _require_params_of_nnx(nnx: Any, params: Any) -> None:
    places: dict[int, str] = {}
    for path, part in _leaves(params, (nnx.Pytree, nnx.Variable)):
        for inner, leaf in _leaves(part, (nnx.Variable,)):
            name, kind = leaf_name("params", (*path, *inner)), type(leaf).__name__
            if isinstance(leaf, nnx.Param):
                if places.setdefault(id(leaf), name) != name:
                    raise TypeError(
                        f"{name} is the same variable as {places[id(leaf)]}, and they would come "
                        f"apart: give `params` of {_SPLIT}, where it stands once (docs/models.md)"
                    )
            elif isinstance(leaf, nnx.Variable):
                raise TypeError(
                    f"{name} is an nnx.{kind}, which no rule may change: give `params` of "
                    f"{_SPLIT}, {_remedy(nnx, leaf)} (docs/models.md)"
                )
            elif isinstance(part, nnx.Pytree):
                raise TypeError(
                    f"{name} stands in a module and is no nnx.Param: make it one, or give `params` "
                    f"of {_SPLIT} (docs/models.md)"
                )


def _remedy(nnx: Any, variable: Any) -> str:
    if isinstance(variable, nnx.BatchStat):
        return f"and {_OWN_STATISTICS}"
    if isinstance(variable, nnx.RngState):
        return "and a loss that takes its key from Task.takes_key=True"
    return "or make it an nnx.Param"


def _leaves(tree: Any, kinds: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    """Paths and leaves, among which are whole instances of these classes."""
    yield from jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, kinds))
