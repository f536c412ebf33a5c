"""What a user hands in to be optimised, checked where it enters: one line for each mistake."""

from __future__ import annotations

import functools
import math
import numbers
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Vector = Any  # a pytree of arrays
_FLOATS = "parameters must be floating-point arrays"


def require_number(
    name: str, value: Any, *, least: float = -math.inf, above: float | None = None
) -> None:
    """Raises ValueError unless it is a real number of at least `least`, or greater than `above`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not (value >= least if above is None else value > above):
        bound = f" of at least {least}" if math.isfinite(least) else ""
        bound = bound if above is None else f" above {above}"
        raise ValueError(f"{name}={value!r} must be a number{bound}")


def require_integer(name: str, value: Any, *, least: int, or_none: bool = False) -> None:
    """Raises ValueError unless it is an integer of at least `least`, or None where that may be."""
    if value is None and or_none:
        return
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < least:
        either = ", or None" if or_none else ""
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}{either}")


def require_bool(name: str, value: Any) -> None:
    """Raises ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def as_rule(name: str, rule: Any, *, or_none: bool = False) -> Any:
    """An optax transform, or what has its two functions, such as `optax.MultiSteps`.

    Raises:
      ValueError: it is something else, and not None where that may be.
    """
    known = isinstance(rule, optax.GradientTransformation) and _is_hashable(rule)
    if known or (rule is None and or_none):
        return rule
    functions = [getattr(rule, function, None) for function in ("init", "update")]
    if all(map(callable, functions)) and not isinstance(rule, type):
        # What is compiled for a rule is found again by its functions.
        return optax.GradientTransformation(*map(_hashable, functions))
    remedy = "give an optax transform, such as optax.sgd(0.05)"
    if callable(rule):
        remedy = (
            "a function is none: call what makes a rule, or give a schedule to a rule, such as "
            "optax.sgd(0.05) or optax.sgd(schedule)"
        )
    raise ValueError(f"{name}={rule!r} is no rule; {remedy}")


def _hashable(function: Any) -> Any:
    return function if _is_hashable(function) else functools.partial(function)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_floats(params: Vector, name: str = "params") -> None:
    """Raises unless this is a pytree of floating-point arrays, or of their shapes and types.

    Raises:
      TypeError: a leaf is something else; names it, its dtype, and what to do.
      ValueError: there is nothing in it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        if not _is_array(leaf):
            raise TypeError(
                f"{leaf_name(name, path)} is {outline(leaf)}; make it an array of floats: {_FLOATS}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{leaf_name(name, path)} is {leaf.dtype}; make it an array of floats, or keep "
                f"it out of {name}: {_FLOATS}"
            )
    if not any(math.prod(leaf.shape) for _, leaf in leaves):
        raise ValueError(f"{name}={_outline(params)} holds no numbers: there is nothing to train")


def require_finite(params: Vector, name: str = "params") -> None:
    """Raises ValueError, naming the first leaf that holds a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        finite = np.isfinite(np.asarray(leaf))
        if not finite.all():
            raise ValueError(
                f"{leaf_name(name, path)} holds {finite.size - finite.sum()} values that are not "
                f"finite, of {finite.size}; start from finite parameters"
            )


def real_scalar(value: Any, name: str) -> float:
    """One real number, as a float: of Python, or an array of any shape that holds one number.

    Raises:
      ValueError: it is something else.
    """
    array = _array(value)
    if array is None or array.size != 1 or not _is_real(array.dtype):
        raise ValueError(f"{name} is {outline(value)}; it must be one real number")
    return float(array.reshape(()))


def require_loss(found: Any, name: str = "loss") -> None:
    """Raises ValueError unless shapes and types of what a loss returns are those of a scalar."""
    if isinstance(found, (tuple, list, dict)) or not _is_array(found):
        raise ValueError(
            f"{name} returns {_outline(found)}; it must return one scalar, without anything beside "
            "it"
        )
    if found.shape != ():
        raise ValueError(
            f"{name} returns {outline(found)}; it must return a scalar: take jnp.mean(...) over "
            "the examples"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"{name} returns {found.dtype}; it must return a real floating-point scalar"
        )


def gradient_like(gradient: Any, params: Vector, name: str) -> Vector:
    """A gradient in new arrays of the parameters' own types; lists of floats are taken as arrays.

    Raises:
      ValueError: its structure, or the shape of a leaf, is not that of the parameters, or it does
        not hold floating-point numbers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    treedef: Any = jax.tree.structure(params)
    try:
        parts = treedef.flatten_up_to(gradient)
    except ValueError as error:
        raise ValueError(
            f"{name} is {_outline(gradient)}, the parameters are {_outline(params)}: it must have "
            "their structure"
        ) from error
    return treedef.unflatten(
        [_like(part, leaf, name, path) for part, (path, leaf) in zip(parts, leaves, strict=True)]
    )


def _like(part: Any, leaf: Any, name: str, path: Any) -> Any:
    array = part if _is_array(part) else _array(part)
    if array is None or array.shape != leaf.shape:
        raise ValueError(
            f"{leaf_name(name, path)} is {outline(part if array is None else array)}, the "
            f"parameter is {outline(leaf)}: give it the same shape"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{leaf_name(name, path)} is {outline(array)}; give it floating-point numbers"
        )
    if isinstance(leaf, jax.Array):
        return jnp.asarray(array, leaf.dtype)
    return np.array(array, leaf.dtype)  # a copy: functions of NumPy arrays may use theirs again


def _array(value: Any) -> Any:
    """As NumPy sees it; None where it does not."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, random keys
        return None


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def outline(value: Any) -> str:
    """A leaf in words: type and shape of an array, else its class."""
    return (
        f"{value.dtype}{list(value.shape)}"
        if _is_array(value)
        else f"of type {type(value).__name__}"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _outline(tree: Any) -> str:
    """A pytree in words."""
    text = " ".join(str(jax.tree.map(outline, tree)).replace("'", "").split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def leaf_name(name: str, path: Any) -> str:
    """What errors call a leaf of a pytree of that name: its keys, joined by slashes."""
    return "/".join([name, *(jax.tree_util.keystr((key,), simple=True) for key in path)])


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


def initial(params: Any) -> Any:
    """The parameters, made now if they are a function.

    Raises:
      TypeError: something of them is no parameter.
    """
    made = params() if is_function(params) else params
    require_parameters(made)
    return made


def is_function(params: Any) -> bool:
    """Whether it makes parameters. (A pytree may be callable too.)"""
    return callable(params) and jax.tree_util.all_leaves([params])
