"""A quadratic as data: linear regression whose minimum and curvatures are known."""

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
    """Inputs whose features are independent, with variances from 1 down to 1 / condition.

    The mean of half the squared error is a quadratic of about that condition; its minimum
    is at weights that are drawn from a normal law, but for `noise`, the standard deviation
    of what is added to the labels (float32, a row of one each).
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
