"""The quadratic whose minimum and curvatures are known."""

import numpy as np
import pytest

from dbjax.data import load


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_variances_fall_from_1_to_1_over_the_condition(condition):
    """Of 16,000 normal examples: the standard error of a variance is sqrt(2 / 16,000) of it."""
    data = load("quadratic", num_examples=20_000, num_features=5, condition=condition)
    variances = data.train.tree.inputs.var(0)
    error = 5 * np.sqrt(2 / 16_000)
    np.testing.assert_allclose(variances, np.geomspace(1, 1 / condition, 5), rtol=error)


def test_labels_are_those_of_the_weights_but_for_the_noise():
    """Without noise least squares leave float32's rounding; with it the noise's deviation."""

    def residual(noise):
        inputs, labels = load(
            "quadratic", num_examples=2_000, num_features=5, condition=10.0, noise=noise
        ).train.tree
        found, *_ = np.linalg.lstsq(inputs, labels, rcond=None)
        return np.std(inputs @ found - labels)

    assert residual(0.0) < 1e-6
    assert residual(0.3) == pytest.approx(0.3, rel=5 / np.sqrt(2 * 1_600))
