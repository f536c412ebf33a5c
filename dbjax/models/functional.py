# ruff: noqa: F722
"""Networks as pure functions of their parameters, the form that the rest of dbjax uses.

Parameters are nested dicts of arrays, with paths such as `layers/0/kernel`. The keys are strings,
so that a checkpoint restores the same tree. NNX module graphs are used only in this file.
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
    """The sizes of a network. Configs are hashable, and equal if their networks are."""

    @property
    def inputs(self) -> int:
        """The number of inputs of an example."""

    @property
    def outputs(self) -> int:
        """The number of classes, or of the values that a regression predicts."""

    def __hash__(self) -> int: ...

    def module(self, rngs: nnx.Rngs) -> Any:
        """Makes an nnx.Module that maps inputs [batch, inputs] to logits.

        All of the module's state must be `nnx.Param`.
        """

    def sharding(self, devices: int, how: str | None = None) -> ModelSharding:
        """Shards the network and its loss over devices.

        Args:
          devices: the number of devices.
          how: the name of a way of sharding; which names apply depends on the network. None
            chooses the paper's.

        Raises:
          ValueError: `how` does not apply to this network, or the network cannot be sharded.
        """


_LARGE_BYTES = 1 << 30


def init(config: Config, seed: int) -> Params:
    """Returns the initial parameters of a network.

    The initialisation is compiled once for each config, whatever the seed. Large parameters (1 GiB
    and more) are made leaf by leaf, because generating random numbers takes three times their own
    memory and a single program generates those of several leaves at the same time.

    Args:
      config: the network.
      seed: the random seed.
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
    """Returns one leaf of `_init`. XLA removes the computation of the others from the program."""
    leaf: jax.Array = jax.tree.leaves(_init(config, seed))[index]
    return leaf


@functools.lru_cache(maxsize=64)
def _module(config: Config) -> tuple[Any, Any]:
    """Returns the module's graph, and its state without values."""
    found: tuple[Any, Any] = nnx.split(
        nnx.eval_shape(lambda: config.module(nnx.Rngs(0))), nnx.Param
    )
    return found


def applied_to_blocks(config: Config, params: Params, inputs: Any, sharding: Any) -> jax.Array:
    """Computes one device's logits by calling the module on the device's blocks of the parameters.

    Args:
      config: the network.
      params: this device's blocks of the parameters.
      inputs: [batch, inputs].
      sharding: the second argument of the module's `__call__`, such as `Tiles`.
    """
    return _called(config, params, inputs, sharding)


@functools.lru_cache(maxsize=64)
def applied(config: Config) -> Callable[[Params, Any], jax.Array]:
    """Returns the function (params, inputs [batch, inputs]) -> logits [batch, classes].

    Equal configs share one function, and therefore also what `jax.jit` compiled for it. NNX
    modules exist only during tracing, so they cost nothing in a compiled program.
    """
    _, abstract = _module(config)
    expected = _with_string_keys(nnx.to_pure_dict(abstract))

    def apply(params: Params, inputs: Any) -> jax.Array:
        _require_like(params, expected)
        return _called(config, params, inputs)

    return apply


def _called(config: Config, params: Params, inputs: Any, *sharding: Any) -> jax.Array:
    """Calls the module with the given parameters."""
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
    """Returns the cross-entropy -log softmax(logits)[label] in nats, the mean over the batch.

    Args:
      logits: [..., classes].
      labels: the class of each example, integers [...].

    Returns:
      The loss, a scalar; NaN if a label is not the number of a class.

    Raises:
      ValueError: the labels are not integers, or their shape does not match the logits.
    """
    _require_classes(logits, labels)
    value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return value * nan_unless_classes(labels, logits.shape[-1], logits.dtype)


def one_against_all(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Returns the logistic loss of each class against all others, in nats.

    The loss is summed over the classes, and its mean is taken over the batch.

    Args:
      logits: [..., classes].
      labels: the class of each example, integers [...].

    Returns:
      The loss, a scalar; NaN if a label is not the number of a class.

    Raises:
      ValueError: the labels are not integers, or their shape does not match the logits.
    """
    _require_classes(logits, labels)
    each = optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
    value = jnp.mean(jnp.sum(each, axis=-1))
    return value * nan_unless_classes(labels, logits.shape[-1], logits.dtype)


def squared_error(
    outputs: Float[Array, "*batch outputs"], labels: Float[Array, "*batch outputs"]
) -> Float[Array, ""]:
    """Returns half the squared distance of outputs and labels, the mean over the batch.

    Args:
      outputs: [..., outputs].
      labels: [..., outputs].

    Raises:
      ValueError: the shapes differ.
    """
    if outputs.shape != labels.shape:  # the subtraction would broadcast them silently
        raise ValueError(
            f"labels of shape {labels.shape} must have the shape of the outputs, {outputs.shape}"
        )
    return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - labels), axis=-1))


def correct(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Int[Array, ""]:
    """Counts the examples whose largest logit is the label's.

    Args:
      logits: [..., classes].
      labels: the class of each example, integers [...].

    Returns:
      The count, a scalar integer.

    Raises:
      ValueError: the labels are not integers, or their shape does not match the logits.
    """
    _require_classes(logits, labels)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels)


def accuracy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Returns the fraction of the examples, from 0 to 1, whose largest logit is the label's.

    Args:
      logits: [..., classes].
      labels: the class of each example, integers [...].

    Raises:
      ValueError: the labels are not integers, or their shape does not match the logits.
    """
    _require_classes(logits, labels)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _require_classes(logits: Any, labels: Any) -> None:
    """Raises ValueError unless there is one integer label for each example.

    The values of the labels are not checked, because they are unknown while tracing.
    """
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
    """Raises ValueError, naming the first difference, unless paths and shapes agree."""
    given, wanted = _shapes(params), _shapes(expected)
    for path in sorted(given.keys() | wanted.keys()):
        if path not in given:
            raise ValueError(f"params/{path} is missing; the network needs shape {wanted[path]}")
        if path not in wanted:
            raise ValueError(f"params/{path} is not a parameter of the network; remove it")
        if given[path] != wanted[path]:
            raise ValueError(
                f"params/{path} has shape {given[path]}, but the network needs {wanted[path]}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): jnp.shape(leaf) for path, leaf in leaves}
