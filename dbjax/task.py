"""What is trained: parameters, a loss, and examples."""

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
      params: initial parameters, a pytree of floating-point arrays, all finite; or a function
        without arguments that makes them, so that nobody has to keep them beside the shards.
        Python's numbers and lists of them are refused, and not converted.
      loss: (params, batch) -> scalar, the mean over the mini-batch; traced by jit. With
        `takes_key` it is (params, batch, key) -> scalar. If it has a method `require_labels`, as
        the losses of `dbjax.models` do, that is given the labels of data that are pairs.
      data: training examples: `Examples`, or a pytree of arrays with equal first
        dimension, of which a batch takes the same rows.
      batch_size: examples in a mini-batch, or in a portion of a batch method. There must be as
        many, for each replica where the data is dealt to them.
      evaluate: params -> named numbers; called now and then, costs no model time, and once before
        the run, so that what it returns can be checked. Names that dbjax gives to numbers of its
        own (`dbjax.monitoring.metrics.RESERVED`) are refused.
      seed: of the order of the data, and of the keys; None: that of the run.
      cut: how each replica's network is cut over devices, with the same loss; None: it is not.
      takes_key: the loss is random, such as by dropout, and takes a key of `jax.random`: of the
        mini-batch of a step `fold_in(fold_in(key(seed), replica), step)`, and of a portion of a
        batch method, in every evaluation, `fold_in(key(seed), portion)`. The same on every runtime.
      most_frequent: `MostFrequent.of(labels)` of the labels that `evaluate` measures accuracy
        on: a run that ends no better than that guess warns; None: it is not known.
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
                "Task.most_frequent is held against an accuracy: give Task.evaluate, which "
                f"returns {self.most_frequent.metric!r}"
            )
        len(self.examples)  # data that cannot be used is refused now

    def start(self) -> Params:
        """The initial parameters, made now if `params` is a function.

        Raises:
          TypeError: a leaf is no floating-point array.
          ValueError: there is nothing to train, or a value is not finite.
        """
        params = initial(self.params)
        require_floats(params)
        require_finite(params)
        return params

    @functools.cached_property
    def shapes(self) -> Params:
        """Shapes and types of the parameters."""
        return jax.eval_shape(lambda: initial(self.params))

    @functools.cached_property
    def examples(self) -> Examples:
        """The training examples, to be gathered by number."""
        return examples_of(self.data, _require_labels(self.loss))

    def batches(self, replica: int, replicas: int) -> Stream:
        """The mini-batches of one of `replicas` replicas, from its own part of the data.

        Raises:
          ValueError: the smallest part is less than a mini-batch.
        """
        part = len(self.examples) // replicas
        if part < self.batch_size:
            raise ValueError(
                f"{len(self.examples)} examples cannot be dealt to replicas={replicas}: "
                f"batch_size={self.batch_size} is more than the {part} that each would have; use "
                "smaller batches, or fewer replicas"
            )
        return Stream(
            self.examples, self.batch_size, self.seed or 0, replica, replicas, keyed=self.takes_key
        )

    @functools.cached_property
    def batch(self) -> Batch:
        """Shapes and types of a mini-batch."""
        first = self.examples.gather(np.zeros(self.batch_size, np.int64))
        if self.takes_key:
            first = Keyed(first, np.zeros(3, np.uint32))
        return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, first))

    @functools.cached_property
    def portions(self) -> Portions:
        """All the data in portions of `batch_size` examples, for batch methods."""
        return Portions(self.examples, self.batch_size, self.seed or 0, keyed=self.takes_key)

    def seeded(self, seed: int) -> Task:
        """The same task; with that seed, if it has none of its own. One for each seed, kept."""
        if self.seed is not None:
            return self
        if seed not in self._seeded:
            self._seeded[seed] = dataclasses.replace(self, seed=seed)
        return self._seeded[seed]

    @functools.cached_property
    def _seeded(self) -> dict[int, Task]:
        return {}


def _require_labels(loss: Any) -> Callable[[Any], None] | None:
    """The loss's `require_labels`, looked for also inside `jax.jit` and `functools.partial`."""
    while not hasattr(loss, "require_labels"):
        within = getattr(loss, "__wrapped__", getattr(loss, "func", None))
        if within is None:
            return None
        loss = within
    found: Callable[[Any], None] = loss.require_labels
    return found


def _require_arguments(name: str, loss: LossFn, takes_key: bool) -> None:
    """Raises TypeError if a loss cannot be called with what it will be given."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # it is written in C, or is no function
        return
    if _takes(signature, 3 if takes_key else 2):
        return
    if not takes_key and _takes(signature, 3):
        raise TypeError(
            f"{name} takes three arguments, {signature}, and is given params and batch: set "
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
