"""Whether a rule treats every parameter by itself, as a server rule on slices must."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_STEPS = 3
_SCALES = (1e-6, 1e-2, 1.0, 1e3, 1e6)  # a norm may be clipped only when it is large


@functools.lru_cache(maxsize=32)
def require_elementwise(rule: optax.GradientTransformation) -> None:
    """Returns if the rule does the same on slices as on the whole.

    Found out by trying: a few updates of a small pytree, at gradients of many scales,
    whole and in pieces, give the same bytes.

    Raises:
      ValueError: they do not (a global norm, a layer's norm, noise); names the transform.
    """
    if not _same_on_slices(rule):
        raise ValueError(
            f"{_culprit(rule)} is not elementwise: on a shard it would see only that slice; "
            "use shards=1, or apply it to the gradient in the loss"
        )


def _same_on_slices(rule: optax.GradientTransformation) -> bool:
    whole = {"a": jnp.linspace(-1, 1, 24).reshape(6, 4), "b": jnp.linspace(0.5, 2, 5)}
    cuts: list[Callable[[Any], Any]] = [
        lambda tree: {"a": tree["a"][:2]},
        lambda tree: {"a": tree["a"][2:], "b": tree["b"][:1]},
        lambda tree: {"a": tree["a"][:, 1:]},
        lambda tree: {"b": tree["b"][1:]},
    ]

    @jax.jit
    def both_ways(gradient: Any) -> tuple[list[Any], list[Any]]:
        together = _trained(rule, whole, gradient)
        apart = [_trained(rule, cut(whole), cut(gradient)) for cut in cuts]
        return [cut(together) for cut in cuts], apart

    random = np.random.default_rng(0)
    for scale in _SCALES:
        gradient = jax.tree.map(lambda p, s=scale: s * random.normal(size=p.shape), whole)
        together, apart = map(jax.tree.leaves, both_ways(gradient))
        if not all(np.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(together, apart)):
            return False
    return True


def _trained(rule: optax.GradientTransformation, params: Any, gradient: Any) -> Any:
    """How far a few updates move the parameters, each by a smaller gradient."""
    begin, state = params, rule.init(params)
    for step in range(_STEPS):
        scaled = jax.tree.map(lambda g, s=step: g / (1 + s), gradient)
        updates, state = rule.update(scaled, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda end, start: end - start, params, begin)


def _culprit(rule: optax.GradientTransformation) -> str:
    """The name of the first member of a chain that is not elementwise, or the rule's own."""
    wrapped = _captured(rule.update, "tx")  # with_extra_args_support
    if wrapped is not None:
        return _culprit(wrapped)
    inits, updates = _captured(rule.init, "init_fns"), _captured(rule.update, "update_fns")
    for member in map(optax.GradientTransformation, inits or (), updates or ()):
        if not _same_on_slices(member):
            return _culprit(member)
    return str(getattr(rule.update, "__qualname__", rule.update)).split(".<locals>")[0]


def _captured(function: Any, name: str) -> Any:
    """What a closure, such as those made by optax.chain, holds under `name`; or None."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells or name not in code.co_freevars:
        return None
    return cells[code.co_freevars.index(name)].cell_contents
