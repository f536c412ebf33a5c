"""Whether a rule treats every parameter by itself, as a server rule on slices must."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Gradients of every size: a norm may be clipped only where it is large.
_MAGNITUDES = tuple(10.0**exponent for exponent in range(-6, 13, 2))


def require_elementwise(rule: optax.GradientTransformation, dtype: Any = jnp.float32) -> None:
    """Returns if the rule does the same on slices of the parameters as on the whole.

    Found out by trying: updates of a small pytree, whole and cut as `dbjax.store` cuts it
    (along an axis, so that a matrix stays a matrix), at gradients of many magnitudes and
    one that is not finite, are compared. A rule that looks at other elements only beyond
    what is tried passes: a norm clipped above 1e13, a factored one above 132 rows.

    Args:
      rule: is given gradient, state and parameters, as a shard does.
      dtype: of parameters and gradients.

    Raises:
      ValueError: the rule is not elementwise (a global norm, a layer's norm, noise drawn
        for a shape), or cannot be run that way (needs the loss); names the transform.
    """
    dtype = np.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"require_elementwise: dtype={dtype} must be a floating-point type")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"require_elementwise: dtype={dtype} needs jax_enable_x64")
    try:
        elementwise = _same_on_slices(rule, dtype)
    except Exception as error:  # whatever the rule raises
        raise ValueError(
            f"{_name(rule)} cannot run on a shard, where a rule is given gradient, state and "
            f"slices in flat dicts, nothing else: {error}"
        ) from error
    if not elementwise:
        raise ValueError(
            f"{_culprit(rule, dtype)} is not elementwise: a shard would apply it to its own "
            "slice only; use shards=1, or a rule that treats every parameter by itself"
        )


@functools.lru_cache(maxsize=32)
def _same_on_slices(rule: optax.GradientTransformation, dtype: np.dtype[Any]) -> bool:
    """Compiles one update of the whole and of the slices, and runs it over all magnitudes."""

    @jax.jit
    def update(gradient: Any, states: list[Any], params: Any) -> tuple[Any, Any, list[Any], Any]:
        gradients, slices = (gradient, *_cut(gradient)), (params, *_cut(params))
        done = [rule.update(g, s, p) for g, s, p in zip(gradients, states, slices, strict=True)]
        (whole, *apart), states = [u for u, _ in done], [s for _, s in done]
        return _cut(whole), apart, states, optax.apply_updates(params, whole)

    random = np.random.default_rng(0)
    sizes = [_draw(random, magnitude, dtype) for magnitude in (*_MAGNITUDES, *_MAGNITUDES)]
    broken = _draw(random, 1.0, dtype)
    broken["layer"]["bias"] = broken["layer"]["bias"].at[4].set(jnp.nan)
    growing, shrinking = sizes[: len(_MAGNITUDES)], sizes[: len(_MAGNITUDES) - 1 : -1]
    for gradients in (growing, [*shrinking, broken]):
        params = _draw(random, 1.0, dtype)
        states = [rule.init(tree) for tree in (params, *_cut(params))]
        for gradient in gradients:
            whole, apart, states, params = update(gradient, states, params)
            if not _close(whole, apart, dtype):
                return False
    return True


def _draw(random: np.random.Generator, magnitude: float, dtype: np.dtype[Any]) -> Any:
    shapes = {"kernel": (132, 130), "bias": (7,)}
    drawn = {name: magnitude * random.normal(size=shape) for name, shape in shapes.items()}
    return {"layer": {name: jnp.asarray(values, dtype) for name, values in drawn.items()}}


def _cut(tree: Any) -> list[dict[str, jax.Array]]:
    """Two slices, in flat dicts; with more of them compiling takes longer, and shows no more."""
    kernel, bias = tree["layer"]["kernel"], tree["layer"]["bias"]
    return [{"layer/kernel[40:132]": kernel[40:, 1:]}, {"layer/bias[3:7]": bias[3:]}]


def _close(whole: Any, apart: Any, dtype: np.dtype[Any]) -> bool:
    """Equal but for rounding: compiled code may fuse loops of other lengths differently."""
    rtol = 64 * float(jnp.finfo(dtype).eps)
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(apart), strict=True)
    doubles = ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
    return all(np.allclose(a, b, rtol=rtol, atol=0, equal_nan=True) for a, b in doubles)


def _culprit(rule: optax.GradientTransformation, dtype: np.dtype[Any]) -> str:
    """The name of the innermost rule that is not elementwise."""
    for part in _parts(rule):
        try:
            refused = not _same_on_slices(part, dtype)
        except Exception:  # a part may need what the whole provides
            continue
        if refused:
            return _culprit(part, dtype)
    return _name(rule)


def _parts(rule: optax.GradientTransformation) -> Iterator[optax.GradientTransformation]:
    """The rules that a combinator, such as optax.chain or optax.masked, closes over."""
    inits, updates = _closure(rule.init), _closure(rule.update)
    for init, update in zip(inits.get("init_fns", ()), updates.get("update_fns", ()), strict=False):
        yield optax.GradientTransformation(init, update)
    for value in updates.values():
        held = value.values() if isinstance(value, dict) else (value,)
        yield from (x for x in held if isinstance(x, optax.GradientTransformation))


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return dict(inspect.getclosurevars(function).nonlocals)
    except TypeError:  # a callable, but no Python function
        return {}


def _name(rule: optax.GradientTransformation) -> str:
    """Of the factory that made the rule: what stands before `.<locals>` in its name."""
    name = getattr(rule.update, "__qualname__", type(rule.update).__qualname__)
    return str(name).split(".<locals>")[0]
