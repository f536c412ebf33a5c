"""A quadratic loss as a data set: linear regression with known minimum and curvatures."""

from __future__ import annotations

import numpy as np

from dbjax.arguments import require_at_least
from dbjax.data.examples import ArrayExamples, Labelled
from dbjax.data.splits import Splits


def quadratic(
    data_dir: str,
    *,
    num_examples: int = 10_000,
    num_features: int = 100,
    condition: float = 1e4,
    noise: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Draws a linear regression whose loss is a quadratic of a chosen condition number.

    The features are independent and normal, with variances spaced geometrically from 1 down to
    1 / condition. Half the mean squared error is therefore a quadratic in the weights with a
    condition number of about `condition`. Without noise its minimum lies at the weights that
    generated the labels, which are drawn from a standard normal.

    Args:
      data_dir: unused: the data is generated in memory.
      num_examples: the number of examples, of which a fifth (at least one) are held out.
      num_features: the length of an input.
      condition: the ratio of the largest to the smallest feature variance, at least 1.
      noise: the standard deviation of the normal noise added to the labels.
      seed: the seed of inputs, weights and noise.

    Returns:
      Splits with inputs float32 [examples, num_features] and labels float32 [examples, 1].

    Raises:
      ValueError: an argument is out of range.
    """
    del data_dir
    require_at_least("", 1, num_examples=num_examples, num_features=num_features)
    if not condition >= 1:
        raise ValueError(f"condition={condition} must be at least 1")
    random = np.random.default_rng(seed)
    scales = np.geomspace(1, condition**-0.5, num_features)
    inputs = random.normal(size=(num_examples, num_features)) * scales
    weights = random.normal(size=(num_features, 1))
    labels = inputs @ weights + noise * random.normal(size=(num_examples, 1))
    held_out = max(1, num_examples // 5)
    train, test = slice(held_out, None), slice(0, held_out)

    def examples(part: slice) -> ArrayExamples:
        return ArrayExamples(
            Labelled(inputs[part].astype(np.float32), labels[part].astype(np.float32))
        )

    return Splits("quadratic", examples(train), examples(test), 1, (num_features,))
