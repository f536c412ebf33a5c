"""Checks of what a user passes to an optimiser. Each error message is a single line."""

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
    """Raises ValueError unless `value` is a real number >= `least`, or > `above` if given."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not (value >= least if above is None else value > above):
        bound = f" of at least {least}" if math.isfinite(least) else ""
        bound = bound if above is None else f" above {above}"
        raise ValueError(f"{name}={value!r} must be a number{bound}")


def require_integer(name: str, value: Any, *, least: int, or_none: bool = False) -> None:
    """Raises ValueError unless `value` is an integer >= `least`, or None if `or_none` is True."""
    if value is None and or_none:
        return
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < least:
        either = ", or None" if or_none else ""
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}{either}")


def require_bool(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


def as_rule(name: str, rule: Any, *, or_none: bool = False) -> Any:
    """Returns an update rule as an optax gradient transformation.

    Args:
      name: the name of the argument, for errors.
      rule: an optax gradient transformation, or another object with callable attributes `init` and
        `update`, such as `optax.MultiSteps`.
      or_none: whether None is allowed; it is returned unchanged.

    Raises:
      ValueError: `rule` is anything else, such as a class or the function that makes a rule.
    """
    known = isinstance(rule, optax.GradientTransformation) and _is_hashable(rule)
    if known or (rule is None and or_none):
        return rule
    functions = [getattr(rule, function, None) for function in ("init", "update")]
    if all(map(callable, functions)) and not isinstance(rule, type):
        # Compiled functions are cached by the rule's functions, which therefore must be hashable.
        return optax.GradientTransformation(*map(_hashable, functions))
    remedy = "give an optax transformation, such as optax.sgd(0.05)"
    if callable(rule):
        remedy = (
            "call the function that makes the rule, or pass a schedule to a rule, such as "
            "optax.sgd(0.05) or optax.sgd(schedule)"
        )
    raise ValueError(f"{name}={rule!r} is not an update rule; {remedy}")


def _hashable(function: Any) -> Any:
    return function if _is_hashable(function) else functools.partial(function)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_floats(params: Vector, name: str = "params") -> None:
    """Raises unless `params` is a pytree of floating-point arrays, or of `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: a leaf is anything else. The message names the leaf, its dtype and the remedy.
      ValueError: the pytree contains no numbers.
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
    """Raises ValueError if a leaf contains a NaN or an infinity; names the first such leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        finite = np.isfinite(np.asarray(leaf))
        if not finite.all():
            raise ValueError(
                f"{leaf_name(name, path)} holds {finite.size - finite.sum()} values that are not "
                f"finite, of {finite.size}; start from finite parameters"
            )


def real_scalar(value: Any, name: str) -> float:
    """Converts a Python number, or an array of any shape with one element, to a float.

    Raises:
      ValueError: `value` is not one real number.
    """
    array = _array(value)
    if array is None or array.size != 1 or not _is_real(array.dtype):
        raise ValueError(f"{name} is {outline(value)}; it must be one real number")
    return float(array.reshape(()))


def require_loss(found: Any, name: str = "loss") -> None:
    """Raises ValueError unless the abstract result of a loss is a real floating-point scalar."""
    if isinstance(found, (tuple, list, dict)) or not _is_array(found):
        raise ValueError(
            f"{name} returns {_outline(found)}; it must return one scalar and nothing else"
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
    """Copies a gradient into new arrays with the dtypes of the parameters.

    A leaf of the gradient may also be a list of floats.

    Raises:
      ValueError: the gradient differs from the parameters in its structure or in the shape of a
        leaf, or it does not consist of floating-point numbers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    treedef: Any = jax.tree.structure(params)
    try:
        parts = treedef.flatten_up_to(gradient)
    except ValueError as error:
        raise ValueError(
            f"{name} is {_outline(gradient)}, but the parameters are {_outline(params)}; "
            "return a gradient with their structure"
        ) from error
    return treedef.unflatten(
        [_like(part, leaf, name, path) for part, (path, leaf) in zip(parts, leaves, strict=True)]
    )


def _like(part: Any, leaf: Any, name: str, path: Any) -> Any:
    array = part if _is_array(part) else _array(part)
    if array is None or array.shape != leaf.shape:
        raise ValueError(
            f"{leaf_name(name, path)} is {outline(part if array is None else array)}, but the "
            f"parameter is {outline(leaf)}; give it the same shape"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{leaf_name(name, path)} is {outline(array)}; give it floating-point numbers"
        )
    if isinstance(leaf, jax.Array):
        return jnp.asarray(array, leaf.dtype)
    return np.array(array, leaf.dtype)  # a copy, because the user's function may reuse its array


def _array(value: Any) -> Any:
    """Converts `value` to a NumPy array; returns None where that is impossible."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, random keys
        return None


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def outline(value: Any) -> str:
    """Describes a leaf for an error message: the dtype and shape of an array, or the class."""
    return (
        f"{value.dtype}{list(value.shape)}"
        if _is_array(value)
        else f"of type {type(value).__name__}"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _outline(tree: Any) -> str:
    """Describes a pytree for an error message, in at most 83 characters."""
    text = " ".join(str(jax.tree.map(outline, tree)).replace("'", "").split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def leaf_name(name: str, path: Any) -> str:
    """Returns what error messages call a leaf: `name` and the keys of its path, joined by `/`."""
    return "/".join([name, *(jax.tree_util.keystr((key,), simple=True) for key in path)])


_SPLIT = "`graphdef, params, rest = nnx.split(model, nnx.Param, ...)`"
_OWN_STATISTICS = "normalise by each batch's own statistics, or use LayerNorm or GroupNorm"


def require_parameters(params: Any) -> None:
    """Raises TypeError if a leaf is known not to be a trainable parameter of its own.

    Rejected are NNX variables other than `nnx.Param`, arrays of an NNX module that are not
    variables, an NNX variable that occurs in two places, and Linen's collection `batch_stats`,
    flattened or not.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        if any("batch_stats" in _parts(key) for key in path):
            raise TypeError(
                f"{leaf_name('params', path)} is a running statistic, not a trainable parameter; "
                f"give variables['params'] alone, and {_OWN_STATISTICS} (docs/models.md)"
            )
    if (nnx := sys.modules.get("flax.nnx")) is not None:
        _require_params_of_nnx(nnx, params)


def _parts(key: Any) -> tuple[Any, ...]:
    """Splits a path's key into the keys that flax joined in it, as a tuple or with slashes."""
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
                        f"{name} is the same variable as {places[id(leaf)]}, and training would "
                        f"make them differ; give `params` of {_SPLIT}, which contains it once "
                        "(docs/models.md)"
                    )
            elif isinstance(leaf, nnx.Variable):
                raise TypeError(
                    f"{name} is an nnx.{kind}, not a trainable parameter; give `params` of "
                    f"{_SPLIT}, {_remedy(nnx, leaf)} (docs/models.md)"
                )
            elif isinstance(part, nnx.Pytree):
                raise TypeError(
                    f"{name} is an array in a module but not an nnx.Param; make it one, or give "
                    f"`params` of {_SPLIT} (docs/models.md)"
                )


def _remedy(nnx: Any, variable: Any) -> str:
    if isinstance(variable, nnx.BatchStat):
        return f"and {_OWN_STATISTICS}"
    if isinstance(variable, nnx.RngState):
        return "and a loss that takes its key from Task.takes_key=True"
    return "or make it an nnx.Param"


def _leaves(tree: Any, kinds: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    """Yields (path, leaf) pairs, treating instances of `kinds` as leaves."""
    yield from jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, kinds))


def initial(params: Any) -> Any:
    """Returns the initial parameters, calling `params` if it is a function.

    Raises:
      TypeError: a leaf is known not to be a parameter.
    """
    made = params() if is_function(params) else params
    require_parameters(made)
    return made


def is_function(params: Any) -> bool:
    """Returns whether `params` makes parameters; a callable pytree is not such a function."""
    return callable(params) and jax.tree_util.all_leaves([params])
