"""A `Task`: the parameters, loss and examples of a training problem."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.arguments import require_at_least, require_fields, require_seed
from dbjax.data.examples import Examples, examples_of, require_known_to_jax
from dbjax.data.most_frequent import MostFrequent
from dbjax.data.portions import Portions
from dbjax.data.stream import Stream
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.optim.inputs import (
    initial,
    is_function,
    leaf_name,
    require_finite,
    require_floats,
    require_parameters,
)
from dbjax.types import Batch, Keyed, LossFn, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Task:
    """A loss to be minimised over examples, from given initial parameters.

    Attributes:
      params: the initial parameters, a pytree of floating-point arrays, all finite; or a function
        without arguments that makes them, so that no copy stays in memory besides the shards'.
        Python numbers and lists of numbers raise an error instead of being converted.
      loss: a function (params, batch) -> scalar, the mean over the mini-batch, which jit traces.
        With `takes_key` it is (params, batch, key) -> scalar. If the loss has a method
        `require_labels`, as the losses of `dbjax.models` do, and the data are pairs, that method
        checks the labels.
      data: the training examples: `Examples`, or a pytree of arrays with equal first
        dimensions. A batch takes the same rows of each array.
      batch_size: the number of examples in a mini-batch, or in a portion of a batch method. The
        data, or each replica's part of it where it is divided, must have at least as many.
      evaluate: a function params -> named numbers, called at every evaluation; it costs no model
        time. It is also called once before the run, to check what it returns. It may not use the
        names of dbjax's own metrics (`dbjax.monitoring.metrics.RESERVED`).
      seed: the seed of the order of the data and of random keys; None: the seed of the run.
      sharding: how each replica's network is partitioned over devices, with the same loss; None:
        no model parallelism.
      takes_key: whether the loss is random, such as with dropout, and takes a `jax.random` key.
        The mini-batch of a step has the key `fold_in(fold_in(key(seed), replica), step)`; a
        portion of a batch method has `fold_in(key(seed), portion)` in every evaluation. The keys
        are the same on every runtime.
      most_frequent: `MostFrequent.of(labels)` for the labels on which `evaluate` measures
        accuracy. A run whose final accuracy is no better than always guessing the most frequent
        class logs a warning; None: no such check.

    Raises:
      ValueError: an attribute is not as described, or the data cannot be used.
      TypeError: the parameters are not floating-point arrays, or the loss takes other arguments.
    """

    params: Params | Callable[[], Params]
    loss: LossFn
    data: Examples | Any
    batch_size: int = 32
    evaluate: Callable[[Params], Metrics] | None = None
    seed: int | None = None
    sharding: ModelSharding | None = None
    takes_key: bool = False
    most_frequent: MostFrequent | None = None

    def __post_init__(self) -> None:
        require_fields("Task", self)
        require_at_least("Task", 1, batch_size=self.batch_size)
        if self.seed is not None:
            require_seed("Task.seed", self.seed)
        _require_arguments("Task.loss", self.loss, self.takes_key)
        if self.sharding is not None:
            _require_arguments("Task.sharding.loss", self.sharding.loss, self.takes_key)
        if not is_function(self.params):
            require_parameters(self.params)
            require_floats(self.params)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
                require_known_to_jax(leaf_name("params", path), leaf.dtype)
        if self.most_frequent is not None and self.evaluate is None:
            raise ValueError(
                "Task.most_frequent is compared to an accuracy: give a Task.evaluate that "
                f"returns {self.most_frequent.metric!r}"
            )
        len(self.examples)  # raises an error now if the data cannot be used

    def start(self) -> Params:
        """Returns the initial parameters; makes them now if `params` is a function.

        Raises:
          TypeError: a leaf is not a floating-point array.
          ValueError: there are no parameters, or a value is not finite.
        """
        params = initial(self.params)
        require_floats(params)
        require_finite(params)
        return params

    @functools.cached_property
    def shapes(self) -> Params:
        """The shapes and dtypes of the parameters, as a pytree of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda: initial(self.params))

    @functools.cached_property
    def examples(self) -> Examples:
        """The training examples, which are gathered by their numbers."""
        return examples_of(self.data, _require_labels(self.loss))

    def batches(self, replica: int, replicas: int) -> Stream:
        """Returns the mini-batches of one replica, from its own part of the data.

        Args:
          replica: the number of the replica, counted from 0.
          replicas: the number of replicas among which the data is divided.

        Raises:
          ValueError: the smallest part has fewer examples than a mini-batch.
        """
        part = len(self.examples) // replicas
        if part < self.batch_size:
            raise ValueError(
                f"{len(self.examples)} examples cannot be divided among replicas={replicas}: "
                f"batch_size={self.batch_size} is more than the {part} that each would have; use "
                "a smaller batch_size, or fewer replicas"
            )
        return Stream(
            self.examples, self.batch_size, self.seed or 0, replica, replicas, keyed=self.takes_key
        )

    @functools.cached_property
    def batch(self) -> Batch:
        """The shapes and dtypes of a mini-batch, as a pytree of `jax.ShapeDtypeStruct`."""
        first = self.examples.gather(np.zeros(self.batch_size, np.int64))
        if self.takes_key:
            first = Keyed(first, np.zeros(3, np.uint32))
        return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, first))

    @functools.cached_property
    def portions(self) -> Portions:
        """All the data in portions of `batch_size` examples each, for batch methods."""
        return Portions(self.examples, self.batch_size, self.seed or 0, keyed=self.takes_key)

    def seeded(self, seed: int) -> Task:
        """Returns the same task with this seed, or the task itself if it has a seed of its own.

        The task keeps the copy for each seed, so equal seeds return the same object.
        """
        if self.seed is not None:
            return self
        if seed not in self._seeded:
            self._seeded[seed] = dataclasses.replace(self, seed=seed)
        return self._seeded[seed]

    @functools.cached_property
    def _seeded(self) -> dict[int, Task]:
        return {}


def _require_labels(loss: Any) -> Callable[[Any], None] | None:
    """Returns the loss's `require_labels`, also from inside `jax.jit` and `functools.partial`."""
    while not hasattr(loss, "require_labels"):
        within = getattr(loss, "__wrapped__", getattr(loss, "func", None))
        if within is None:
            return None
        loss = within
    found: Callable[[Any], None] = loss.require_labels
    return found


def _require_arguments(name: str, loss: LossFn, takes_key: bool) -> None:
    """Raises TypeError if a loss cannot be called with the arguments that it will get."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # it is written in C, or is not a function
        return
    if _takes(signature, 3 if takes_key else 2):
        return
    if not takes_key and _takes(signature, 3):
        raise TypeError(
            f"{name} takes three arguments, {signature}, but is given params and batch: set "
            "Task.takes_key=True for a random key as the third one"
        )
    given = "(params, batch, key), since takes_key=True" if takes_key else "(params, batch)"
    raise TypeError(f"{name} takes {signature}: it must take {given}")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
