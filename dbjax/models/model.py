"""A network by name, with its loss."""

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
    """Initial parameters, and pure functions of parameters; a batch is (inputs, labels).

    Models of the same sizes share their functions, so a second seed compiles nothing.

    Attributes:
      init: () -> initial parameters, a nested dict of float32 arrays; made anew by each call.
      apply: (params, inputs [batch, inputs]) -> logits [batch, classes].
      loss: (params, batch) -> cross-entropy in nats (vision: of each class against all
        others, summed), or half the squared error of a regression, mean over the batch; and
        l2 / 2 times the sum of squared parameters.
      correct: (params, batch) -> how many labels have the largest logit; None: a regression.
      cut: (devices, how) -> the network with its loss, cut over devices; how: "units" or
        "alternating" of fully connected layers, "tiles" of images, None: the paper's.
    """

    init: Callable[[], Params]
    apply: Callable[[Params, Any], jax.Array]
    loss: LossFn
    correct: Callable[[Params, Batch], jax.Array] | None
    sharding: Callable[[int, str | None], ModelSharding]

    @functools.cached_property
    def params(self) -> Params:
        """The initial parameters, made when first asked for, and kept."""
        return self.init()

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init)))


def speech(inputs: int, classes: int, *, width: int = 2560, depth: int = 4) -> SpeechConfig:
    """The paper's speech network, of any width and depth."""
    return SpeechConfig(inputs, width, depth, classes)


def mlp(inputs: int, classes: int, *, widths: Collection[int] = (64,)) -> MlpConfig:
    """A network of ReLU layers."""
    return MlpConfig(inputs, classes, tuple(widths))


def softmax(inputs: int, classes: int) -> MlpConfig:
    """Softmax regression, which is convex."""
    return MlpConfig(inputs, classes, ())


def linear(inputs: int, classes: int) -> LinearConfig:
    """Linear regression, whose loss is a quadratic."""
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
    """The paper's locally connected network, for square images of any size."""
    require_sizes("vision", channels=channels)
    side = math.isqrt(inputs // channels)
    if side * side * channels != inputs:
        raise ValueError(
            f"model 'vision': {inputs} inputs are no square image of channels={channels}"
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
    """Builds a network by name, with the keyword arguments of its function in `CONFIGS`.

    Raises:
      ValueError: no such network or option (names the nearest), or a bad size.
    """
    require_arguments(name, l2=l2, **options)
    return model(CONFIGS[name](inputs, classes, **options), seed, l2=l2)


def require_arguments(name: str, *, l2: float = 0.0, **options: Any) -> None:
    """Raises ValueError if there is no such network, or it has no such option."""
    if name not in CONFIGS:
        raise ValueError(f"no model {name!r}{nearest(name, CONFIGS)}")
    require_known(f"model {name!r}", options | {"l2": l2}, argument_hints(name))
    if not 0 <= l2 < math.inf:
        raise ValueError(f"model {name!r}: l2={l2} must be at least 0, and finite")


def argument_hints(name: str) -> dict[str, Any]:
    """The arguments of a network, and their types."""
    return keyword_hints(CONFIGS[name]) | {"l2": float}


def model(config: functional.Config, seed: int, *, l2: float = 0.0) -> Model:
    """The network of a config such as `PAPER`, initialised from a seed."""
    seed = require_seed("seed", seed)
    return Model(functools.partial(functional.init, config, seed), *_functions(config, l2))


_ERRORS = {LinearConfig: functional.squared_error, VisionConfig: functional.one_against_all}


@final
@dataclasses.dataclass(frozen=True)
class Loss:
    """(params, batch) -> the loss of a `Model`.

    A loss that knows which labels there are says so in `require_labels`: `dbjax.Task` asks it
    when it is given data.
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
        """Raises ValueError unless the network can be trained to predict these labels."""
        outputs = self.config.outputs
        if not isinstance(self.config, LinearConfig):
            require_labels("data", labels, outputs)
        elif labels.shape[1:] != (outputs,):
            raise ValueError(
                f"data: labels of shape {list(labels.shape)} must be [examples, {outputs}] for a "
                f"regression of {outputs} numbers"
            )


@functools.lru_cache(maxsize=64)
def _functions(config: functional.Config, l2: float) -> tuple[Any, LossFn, Any, Any]:
    """(apply, loss, correct, cut); equal configs share them."""
    apply = functional.applied(config)

    def correct(params: Params, batch: Batch) -> jax.Array:
        inputs, labels = batch
        return functional.correct(apply(params, inputs), labels)

    @functools.cache
    def sharding(devices: int, how: str | None) -> ModelSharding:
        return penalised(config.sharding(devices, how), l2) if l2 else config.sharding(devices, how)

    regression = isinstance(config, LinearConfig)
    return apply, Loss(config, l2), None if regression else correct, sharding
