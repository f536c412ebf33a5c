"""Gradient descent and conjugate gradients against plain loops, and when a method stops."""

import dataclasses
import math

import numpy as np
import pytest

from dbjax.optim import ConjugateGradients, GradientDescent, State, Stops, minimise
from tests.references import polak_ribiere

NEVER = Stops(0.0, -1.0)


class Given:
    """Steps that are given, one an iteration; it notes where each search would have begun."""

    def __init__(self, *steps):
        self.steps, self.begins, self.slopes = list(steps), [], []

    async def search(self, evaluate, start, first_step):
        self.begins.append(first_step)
        self.slopes.append(start.slope)
        return await evaluate(self.steps[len(self.begins) - 1]), ""


def wavy(x):
    """Not quadratic, so that Polak and Ribiere differ from Fletcher and Reeves."""
    return float(np.sum(np.cosh(x) + 0.1 * x**3) + x[0] * x[1]), np.sinh(x) + 0.3 * x**2 + np.array(
        [x[1], x[0], 0.0]
    )


START = np.array([1.0, -1.5, 0.5])


def after(method, iterations, function=wavy, start=START):
    stops = dataclasses.replace(NEVER, iterations=iterations)
    return minimise(None, start, method, stops, value_and_grad=function)


def test_conjugate_gradients_are_those_of_polak_and_ribiere():
    """Ten operations an iteration in float64, of numbers below 10; one beta is cut off at 0."""
    steps = (0.8, 0.6, 0.3, 0.8, 0.8)
    path, betas = polak_ribiere(wavy, START, steps)
    assert [beta > 0.1 for beta in betas] == [True, True, False, True, True]
    for k in range(1, 6):
        x, _ = after(ConjugateGradients(wolfe=Given(*steps)), k)
        np.testing.assert_allclose(x, path[k], rtol=0, atol=1e-13)


def uphill(x):
    """A gradient that turns round: the old direction would rise."""
    return float(x @ x), np.array([1.0, 0.0]) if x[0] > 0 else np.array([-1.0, 0.5])


def test_a_direction_that_would_rise_is_given_up():
    """g = (1, 0), then (-1, 0.5): beta = (1.25 + 1) / 1, so that the slope -1.25 + 2.25 is above
    0, and the direction is the gradient's: 1.25 down.
    """
    search = Given(2.0, 1.0)
    x, _ = after(ConjugateGradients(wolfe=search), 2, uphill, np.array([1.0, 0.0]))
    assert search.slopes == pytest.approx([-1.0, -1.25])
    assert x.tolist() == [0.0, -0.5]


def test_searches_begin_at_the_length_of_the_last_step():
    search = Given(0.25, 0.5, 0.125)
    after(GradientDescent(first_step=2.0, wolfe=search), 3)
    norm = np.linalg.norm(wavy(START)[1])
    assert search.begins == pytest.approx([2.0 / norm, 0.25, 0.5])


def test_conjugate_gradients_expect_the_last_change_of_the_loss():
    """To first order: the last step times the ratio of the slopes."""
    search = Given(0.25, 0.5)
    after(ConjugateGradients(first_step=2.0, wolfe=search), 2)
    norm = np.linalg.norm(wavy(START)[1])
    expected = 0.25 * search.slopes[0] / search.slopes[1]
    assert search.begins == pytest.approx([2.0 / norm, expected])


def test_descent_goes_down_the_gradient():
    x, state = after(GradientDescent(wolfe=Given(0.5)), 1)
    np.testing.assert_allclose(x, START - 0.5 * wavy(START)[1], rtol=1e-15)
    assert (state.iteration, state.evaluations, state.step) == (1, 2, 0.5)


def state(**changes):
    return dataclasses.replace(State(3, 7, 100.0, 100.0, 1.0, decrease=1.0), **changes)


@pytest.mark.parametrize(
    ("stops", "changes", "stop"),
    [
        # a decrease of 1 of 100 is one of 1 %, and of 0.1 it is measured against 1
        (Stops(0.0, 0.011), {}, "relative decrease <= 0.011"),
        (Stops(0.0, 0.009), {}, ""),
        (Stops(0.0, 0.9), {"loss": 0.1, "decrease": 1.0}, ""),
        (Stops(0.0, 1.1), {"loss": 0.1, "decrease": 1.0}, "relative decrease <= 1.1"),
        (Stops(0.0, 0.011), {"loss": -100.0}, "relative decrease <= 0.011"),
        (Stops(0.0, 1.0), {"decrease": math.nan}, ""),  # nothing was compared
        (Stops(1.0, -1.0), {}, "gradient norm 1 <= 1"),
        (Stops(0.999, -1.0), {}, ""),
        (Stops(0.0, -1.0, iterations=3), {}, "3 iterations"),
        (Stops(0.0, -1.0, iterations=4), {}, ""),
        (Stops(0.0, -1.0, evaluations=7), {}, "7 evaluations"),
        (Stops(0.0, -1.0, evaluations=8), {}, ""),
        (Stops(), {"stop": "before"}, "before"),
    ],
)
def test_when_it_stops(stops, changes, stop):
    assert stops.check(state(**changes)).stop == stop
