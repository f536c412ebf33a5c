"""Builds networks, with their losses, by name or from a config."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any, final

import jax
import jax.numpy as jnp

from dbjax.arguments import (
    keyword_hints,
    nearest,
    require_known,
    require_labels,
    require_seed,
)
from dbjax.model_parallel.losses import penalised
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.models import functional
from dbjax.models.fully_connected import LinearConfig, MlpConfig
from dbjax.models.functional import require_sizes
from dbjax.models.speech import SpeechConfig
from dbjax.models.vision import VisionConfig
from dbjax.types import Batch, LossFn, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network: its initial parameters, and pure functions of parameters.

    A batch is a pair (inputs, labels). Models of the same sizes share their functions, so a second
    seed compiles nothing.

    Attributes:
      init: () -> initial parameters, a nested dict of float32 arrays, which are new in each call.
      apply: (params, inputs [batch, inputs]) -> logits [batch, classes].
      loss: (params, batch) -> the loss, a scalar. It is the mean over the batch of the
        cross-entropy in nats, or, for vision, of the logistic losses of each class against all
        others, summed over the classes, or, for a regression, of half the squared error; plus
        l2 / 2 times the sum of squared parameters.
      correct: (params, batch) -> the number of examples whose largest logit is the label's; None
        for a regression.
      sharding: (devices, how) -> the network and its loss, sharded over devices. `how` is "units"
        or "alternating" for fully connected layers, "tiles" for images, or None for the paper's.
    """

    init: Callable[[], Params]
    apply: Callable[[Params, Any], jax.Array]
    loss: LossFn
    correct: Callable[[Params, Batch], jax.Array] | None
    sharding: Callable[[int, str | None], ModelSharding]

    @functools.cached_property
    def params(self) -> Params:
        """The initial parameters, which are made at the first access and kept."""
        return self.init()

    @property
    def size(self) -> int:
        """The number of parameters (scalars)."""
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init)))


def speech(inputs: int, classes: int, *, width: int = 2560, depth: int = 4) -> SpeechConfig:
    """Returns the config of the paper's speech network, with any width and depth.

    Paper: section 5.

    Args:
      inputs: the number of inputs.
      classes: the number of acoustic states.
      width: the number of units of each hidden layer.
      depth: the number of hidden layers.
    """
    return SpeechConfig(inputs, width, depth, classes)


def mlp(inputs: int, classes: int, *, widths: Collection[int] = (64,)) -> MlpConfig:
    """Returns the config of a multi-layer perceptron with ReLU units.

    Args:
      inputs: the number of inputs.
      classes: the number of classes.
      widths: the number of units of each hidden layer.
    """
    return MlpConfig(inputs, classes, tuple(widths))


def softmax(inputs: int, classes: int) -> MlpConfig:
    """Returns the config of softmax regression, whose loss is convex.

    Args:
      inputs: the number of inputs.
      classes: the number of classes.
    """
    return MlpConfig(inputs, classes, ())


def linear(inputs: int, classes: int) -> LinearConfig:
    """Returns the config of linear regression, whose loss is quadratic.

    Args:
      inputs: the number of inputs.
      classes: the number of values to predict.
    """
    return LinearConfig(inputs, classes)


def vision(
    inputs: int,
    classes: int,
    *,
    units: int = 36,
    channels: int = 3,
    patch: int = 10,
    last_pool: int = 9,
) -> VisionConfig:
    """Returns the config of the paper's locally connected network, for square images of any size.

    Paper: section 5.

    Args:
      inputs: the numbers in an image, side * side * channels.
      classes: the number of classes.
      units: the number of units on each patch.
      channels: the number of channels of a pixel.
      patch: the number of positions per side of a patch.
      last_pool: the number of positions per side, and the stride, of the last stage's pooling.

    Raises:
      ValueError: `inputs` is not the size of a square image, or the image is too small.
    """
    require_sizes("vision", channels=channels)
    side = math.isqrt(inputs // channels)
    if side * side * channels != inputs:
        raise ValueError(
            f"model 'vision': inputs={inputs} is not side * side * channels for any side with "
            f"channels={channels}"
        )
    return VisionConfig(side, classes, units, channels, patch, last_pool)


CONFIGS: dict[str, Callable[..., functional.Config]] = {
    "speech": speech,
    "mlp": mlp,
    "softmax": softmax,
    "vision": vision,
    "linear": linear,
}


def build(
    name: str, *, inputs: int, classes: int, seed: int, l2: float = 0.0, **options: Any
) -> Model:
    """Builds a network by name.

    Args:
      name: "speech", "mlp", "softmax", "vision" or "linear".
      inputs: the number of inputs of an example.
      classes: the number of classes, or of values that a regression predicts.
      seed: the random seed of the initial parameters.
      l2: the loss gets l2 / 2 times the sum of squared parameters.
      **options: the keyword arguments of the network's function in `CONFIGS`, such as `widths`.

    Returns:
      The model.

    Raises:
      ValueError: there is no such network or option (the message names the nearest), or a size is
        invalid.
    """
    require_arguments(name, l2=l2, **options)
    return model(CONFIGS[name](inputs, classes, **options), seed, l2=l2)


def require_arguments(name: str, *, l2: float = 0.0, **options: Any) -> None:
    """Checks the arguments of `build` that do not depend on the data.

    Raises:
      ValueError: there is no such network or option, or `l2` is negative or not finite.
    """
    if name not in CONFIGS:
        raise ValueError(f"no model {name!r}{nearest(name, CONFIGS)}")
    require_known(f"model {name!r}", options | {"l2": l2}, argument_hints(name))
    if not 0 <= l2 < math.inf:
        raise ValueError(f"model {name!r}: l2={l2} must be finite and at least 0")


def argument_hints(name: str) -> dict[str, Any]:
    """Returns the options of a network and their types.

    Args:
      name: the name of a network, as in `build`.
    """
    return keyword_hints(CONFIGS[name]) | {"l2": float}


def model(config: functional.Config, seed: int, *, l2: float = 0.0) -> Model:
    """Builds the network of a config.

    Args:
      config: the sizes of the network, such as `PAPER`.
      seed: the random seed of the initial parameters.
      l2: the loss gets l2 / 2 times the sum of squared parameters.

    Returns:
      The model.

    Raises:
      ValueError: `seed` is not a valid seed.
    """
    seed = require_seed("seed", seed)
    return Model(functools.partial(functional.init, config, seed), *_functions(config, l2))


_ERRORS = {LinearConfig: functional.squared_error, VisionConfig: functional.one_against_all}


@final
@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a `Model`, a function (params, batch) -> scalar.

    `dbjax.Task` calls `require_labels` with the labels of its data to check them before a run.

    Attributes:
      config: the network.
      l2: the loss includes l2 / 2 times the sum of squared parameters.
    """

    config: functional.Config
    l2: float

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        inputs, labels = batch
        error = _ERRORS.get(type(self.config), functional.cross_entropy)
        value = error(functional.applied(self.config)(params, inputs), labels)
        if self.l2:
            value += 0.5 * self.l2 * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))
        return value

    def require_labels(self, labels: Any) -> None:
        """Raises ValueError unless the network can be trained to predict `labels`."""
        outputs = self.config.outputs
        if not isinstance(self.config, LinearConfig):
            require_labels("data", labels, outputs)
        elif labels.shape[1:] != (outputs,):
            raise ValueError(
                f"data: labels of shape {list(labels.shape)} must be [examples, {outputs}] for a "
                f"regression with {outputs} outputs"
            )


@functools.lru_cache(maxsize=64)
def _functions(config: functional.Config, l2: float) -> tuple[Any, LossFn, Any, Any]:
    """Returns (apply, loss, correct, sharding), which equal configs share."""
    apply = functional.applied(config)

    def correct(params: Params, batch: Batch) -> jax.Array:
        inputs, labels = batch
        return functional.correct(apply(params, inputs), labels)

    @functools.cache
    def sharding(devices: int, how: str | None) -> ModelSharding:
        return penalised(config.sharding(devices, how), l2) if l2 else config.sharding(devices, how)

    regression = isinstance(config, LinearConfig)
    return apply, Loss(config, l2), None if regression else correct, sharding
