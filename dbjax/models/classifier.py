"""A network as pure functions of its parameters, which is what the rest of dbjax takes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dbjax.models.dense import Dense
from dbjax.models.speech import Speech, SpeechConfig
from dbjax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Initial parameters, a nested dict, and functions of parameters.

    Attributes:
      params: initial parameters.
      apply: (params, inputs [batch, ...]) -> logits [batch, classes].
    """

    params: Params
    apply: Callable[[Params, Any], jax.Array]

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Cross-entropy in nats, mean over the batch of (inputs, labels)."""
        inputs, labels = batch
        logits = self.apply(params, inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def correct(self, params: Params, batch: Batch) -> jax.Array:
        """How many of the batch are classified correctly."""
        inputs, labels = batch
        return jnp.sum(jnp.argmax(self.apply(params, inputs), axis=-1) == labels)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def speech(
    inputs: int, classes: int, seed: int, *, width: int = 2560, depth: int = 4
) -> Classifier:
    """The paper's speech network, of any width and depth."""
    config = SpeechConfig(inputs, width, depth, classes)
    return functional(lambda rngs: Speech(config, rngs=rngs), seed)


def dense(inputs: int, classes: int, seed: int, *, widths: tuple[int, ...] = (64,)) -> Classifier:
    """A network of ReLU layers."""
    return functional(lambda rngs: Dense(inputs, tuple(widths), classes, rngs=rngs), seed)


def softmax(inputs: int, classes: int, seed: int) -> Classifier:
    """Softmax regression, which is convex."""
    return functional(lambda rngs: Dense(inputs, (), classes, rngs=rngs), seed)


BUILDERS: dict[str, Callable[..., Classifier]] = {
    "speech": speech,
    "dense": dense,
    "softmax": softmax,
}


def build(name: str, *, inputs: int, classes: int, seed: int = 0, **options: Any) -> Classifier:
    """Builds a network by name, with options of its builder.

    Raises:
      ValueError: no such network or option; names the nearest.
    """
    if name not in BUILDERS:
        raise ValueError(f"no model {name!r}{_nearest(name, BUILDERS)}")
    known = list(inspect.signature(BUILDERS[name]).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(f"model {name!r} has no option {option!r}{_nearest(option, known)}")
    return BUILDERS[name](inputs, classes, seed, **options)


def functional(make: Callable[[nnx.Rngs], nnx.Module], seed: int) -> Classifier:
    """A flax NNX module as parameters and a pure function; merging costs trace time only."""

    @jax.jit
    def init() -> dict[str, Any]:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(seed)), nnx.Param))

    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)[:2]

    def apply(params: Params, inputs: Any) -> jax.Array:
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(jnp.asarray(inputs))  # type: ignore[no-any-return]

    return Classifier(init(), apply)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.0)
    return f"; nearest: {close[0]!r}" if close else "; it has none"
