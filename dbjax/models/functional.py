# ruff: noqa: F722
"""Networks as pure functions of their parameters, which is what the rest of dbjax takes.

Parameters are nested dicts of arrays, with paths such as `layers/0/kernel`; keys are
strings, so that a checkpoint gives the same tree back. The module's graph stays here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dbjax.model_parallel.losses import nan_unless_classes
from dbjax.model_parallel.sharding import ModelSharding, path_name
from dbjax.types import Params


class Config(Protocol):
    """Sizes of a network; hashable, and equal where the networks are."""

    @property
    def inputs(self) -> int: ...

    @property
    def outputs(self) -> int:
        """Classes, or the numbers that a regression predicts."""

    def __hash__(self) -> int: ...

    def module(self, rngs: nnx.Rngs) -> Any:
        """An nnx.Module all of whose state is nnx.Param, [batch, inputs] -> logits."""

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        """The network with its loss, cut over devices.

        Args:
          how: one of the ways that its module knows; None: the paper's.

        Raises:
          ValueError: there is no such way, or none at all.
        """


_LARGE_BYTES = 1 << 30


def init(config: Config, seed: int) -> Params:
    """Initial parameters. Compiled once for each config, whatever the seed.

    Where they are large, leaf by leaf: random numbers need three times their own memory while
    they are made, and one program makes those of several leaves at once.
    """
    like, treedef = jax.tree.flatten(jax.eval_shape(functools.partial(_init, config), seed))
    if sum(leaf.size * leaf.dtype.itemsize for leaf in like) < _LARGE_BYTES:
        return _init(config, seed)
    leaves = (_leaf(config, seed, index) for index in range(len(like)))
    return jax.tree.unflatten(treedef, [jax.block_until_ready(leaf) for leaf in leaves])


@functools.partial(jax.jit, static_argnums=0)
def _init(config: Config, seed: int) -> Params:
    return _with_string_keys(
        nnx.to_pure_dict(nnx.state(config.module(nnx.Rngs(jax.random.key(seed)))))
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _leaf(config: Config, seed: int, index: int) -> jax.Array:
    """One leaf of `_init`; what the others need is not in the program."""
    leaf: jax.Array = jax.tree.leaves(_init(config, seed))[index]
    return leaf


@functools.lru_cache(maxsize=64)
def _module(config: Config) -> tuple[Any, Any]:
    """The module's graph, and its state without values."""
    found: tuple[Any, Any] = nnx.split(
        nnx.eval_shape(lambda: config.module(nnx.Rngs(0))), nnx.Param
    )
    return found


def applied_to_blocks(config: Config, params: Params, inputs: Any, sharding: Any) -> jax.Array:
    """One device's logits: the module called with `sharding`, on the device's blocks of `params`."""
    return _called(config, params, inputs, sharding)


@functools.lru_cache(maxsize=64)
def applied(config: Config) -> Callable[[Params, Any], jax.Array]:
    """The function (params, inputs [batch, inputs]) -> logits [batch, classes].

    Equal configs share it, and with it whatever jit compiled. Where it is traced it costs
    nothing in the compiled program: modules exist only while tracing.
    """
    _, abstract = _module(config)
    expected = _with_string_keys(nnx.to_pure_dict(abstract))

    def apply(params: Params, inputs: Any) -> jax.Array:
        _require_like(params, expected)
        return _called(config, params, inputs)

    return apply


def _called(config: Config, params: Params, inputs: Any, *sharding: Any) -> jax.Array:
    """The module with these parameters, called."""
    inputs = jnp.asarray(inputs)
    if inputs.shape[-1:] != (config.inputs,):
        raise ValueError(f"inputs of shape {inputs.shape} must end in {config.inputs}")
    graph, abstract = _module(config)
    state = nnx.clone(abstract)
    nnx.replace_by_pure_dict(state, params)
    logits: jax.Array = nnx.merge(graph, state)(inputs, *sharding)
    return logits


def require_sizes(model: str, **sizes: int) -> None:
    """Raises ValueError, naming the first size that is not an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{model}.{name}={size!r} must be an integer of at least 1")


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """-log softmax(logits)[label], in nats; mean over the batch; NaN if a label is no class."""
    _require_classes(logits, labels)
    value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return value * nan_unless_classes(labels, logits.shape[-1], logits.dtype)


def one_against_all(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Logistic loss of each class against all others, in nats; sum over classes, mean over the
    batch; NaN if a label is no class.
    """
    _require_classes(logits, labels)
    each = optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
    value = jnp.mean(jnp.sum(each, axis=-1))
    return value * nan_unless_classes(labels, logits.shape[-1], logits.dtype)


def squared_error(
    outputs: Float[Array, "*batch outputs"], labels: Float[Array, "*batch outputs"]
) -> Float[Array, ""]:
    """Half the squared distance; mean over the batch."""
    if outputs.shape != labels.shape:  # they would be subtracted all the same, each from each
        raise ValueError(
            f"labels of shape {labels.shape} must have that of outputs {outputs.shape}"
        )
    return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - labels), axis=-1))


def correct(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Int[Array, ""]:
    """How many of the batch have their largest logit at the label."""
    _require_classes(logits, labels)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels)


def accuracy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """The share of the batch, 0 .. 1, with the largest logit at the label."""
    _require_classes(logits, labels)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _require_classes(logits: Any, labels: Any) -> None:
    """Raises ValueError unless there is one integer for each example; values are not known here."""
    shape, dtype = jnp.shape(labels), jnp.result_type(labels)
    if shape != logits.shape[:-1] or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"labels are {dtype}{list(shape)}; for logits {list(logits.shape)} they must be "
            f"integers {list(logits.shape[:-1])}: one class for each example"
        )


def _with_string_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {str(key): _with_string_keys(value) for key, value in tree.items()}


def _require_like(params: Params, expected: Any) -> None:
    """Raises ValueError, naming the first difference, unless names and shapes agree."""
    given, wanted = _shapes(params), _shapes(expected)
    for path in sorted(given.keys() | wanted.keys()):
        if given.get(path) != wanted.get(path):
            has, needs = given.get(path, "is missing"), wanted.get(path, "is not one of its own")
            raise ValueError(f"params/{path}: has shape {has}, the network needs {needs}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): jnp.shape(leaf) for path, leaf in leaves}
