"""The line search itself, on functions of one step whose trials are known by hand."""

import math

import pytest

from dbjax.optim.wolfe import Trial, Wolfe


def search(wolfe, function, first_step=1.0):
    """What it found and why not, and the steps that it tried. `function`: step -> (loss, slope)."""
    tried = []

    async def evaluate(step):
        tried.append(step)
        return Trial(step, *function(step))

    coroutine = wolfe.search(evaluate, Trial(0.0, *function(0.0)), first_step)
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    found, why = end.value.value
    return found, why, tried


def quadratic(minimum):
    """0.5 (step - minimum)^2"""
    return lambda step: (0.5 * (step - minimum) ** 2, step - minimum)


def cubic(step):
    """A minimum at 1/6 below the start; at 1 a maximum above it, which is flat too."""
    return -step + 3.5 * step**2 - 2 * step**3, -1 + 7 * step - 6 * step**2


def test_a_flat_place_that_is_no_lower_is_refused():
    """The cubic through both ends is the function: its minimum is the second trial."""
    found, _, tried = search(Wolfe(), cubic)
    assert tried == pytest.approx([1.0, 1 / 6])
    assert found.loss == pytest.approx(cubic(1 / 6)[0])


def test_a_lower_place_that_rises_steeply_is_refused():
    """At 1 the loss is lower by 0.01, and the slope 0.49 is above 0.9 times 0.51."""
    found, _, tried = search(Wolfe(), quadratic(0.51))
    assert tried == pytest.approx([1.0, 0.51])
    assert found.slope == pytest.approx(0.0, abs=1e-12)  # rounding of 0.51


def test_a_step_that_falls_as_steeply_as_the_start_is_too_short():
    """It grows by 10 at most, and where the slope would be 0 it stops."""
    found, _, tried = search(Wolfe(curvature=0.1), quadratic(100.0))
    assert tried == pytest.approx([1.0, 10.0, 100.0])
    assert found.step == pytest.approx(100.0)
    _, _, tried = search(Wolfe(curvature=0.1, largest_growth=1e3), quadratic(100.0))
    assert tried == pytest.approx([1.0, 100.0])


def test_the_share_of_the_slope_and_of_the_decrease_are_those_of_the_settings():
    """From slope -1: the first trial has the slope -0.5, and 0.75 of the promised decrease."""
    assert search(Wolfe(curvature=0.51), quadratic(1.0), 0.5)[2] == [0.5]
    assert len(search(Wolfe(curvature=0.49), quadratic(1.0), 0.5)[2]) == 2
    assert search(Wolfe(decrease=0.74, curvature=0.75), quadratic(1.0), 0.5)[2] == [0.5]
    assert len(search(Wolfe(decrease=0.76, curvature=0.77), quadratic(1.0), 0.5)[2]) > 1


def two_minima(step):
    return -step + 3.5 * step**2 - 2 * step**3 + 0.3 * step**4, (
        -1 + 7 * step - 6 * step**2 + 1.2 * step**3
    )  # fmt: skip


def narrow(step):
    return abs(step - 2) ** 1.5, 1.5 * math.copysign(abs(step - 2) ** 0.5, step - 2)


def bumps(step):
    return math.cos(5 * step) - step + 0.02 * step**2, -5 * math.sin(5 * step) - 1 + 0.04 * step


FUNCTIONS = {
    "quadratic": quadratic(3.0),
    "two minima": two_minima,
    "bumps": bumps,
    "steep": lambda step: (math.exp(-step) + 1e-3 * step, -math.exp(-step) + 1e-3),
    "narrow": narrow,
}


@pytest.mark.parametrize("first_step", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("curvature", [0.1, 0.9])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_found_fulfils_the_strong_wolfe_conditions(name, curvature, first_step):
    function = FUNCTIONS[name]
    wolfe = Wolfe(curvature=curvature, max_trials=40)
    found, why, tried = search(wolfe, function, first_step)
    loss, slope = function(0.0)
    assert why == ""
    assert found.step in tried
    assert found.loss <= loss + wolfe.decrease * found.step * slope
    assert abs(found.slope) <= -curvature * slope


def test_where_losses_are_rounded_slopes_decide():
    """Hager & Zhang: the loss may rise by its own error, if the slope has changed enough."""

    def rounded(step):
        loss, slope = quadratic(1e-7)(step)
        return 1.0 + round(loss, 12) + 4e-10 * (step > 0), slope

    found, _, tried = search(Wolfe(), rounded, 0.9e-7)
    assert tried == [0.9e-7]
    assert found.loss > rounded(0.0)[0]
    found, why, _ = search(Wolfe(loss_error=1e-12), rounded, 0.9e-7)
    assert found is None
    assert why == "no lower loss found in 20 trials along the direction"


def test_trials_that_are_not_finite_are_too_far():
    def barrier(step):
        return (math.nan, math.nan) if step >= 0.5 else quadratic(0.3)(step)

    found, _, tried = search(Wolfe(), barrier, 100.0)
    assert tried[:4] == pytest.approx([100.0, 10.0, 1.0, 0.1])
    assert found.step < 0.5


def test_when_trials_run_out_a_lower_one_is_taken_and_else_none():
    found, why, tried = search(Wolfe(curvature=0.01, max_trials=2), quadratic(100.0))
    assert (found.step, why, tried) == (10.0, "", [1.0, 10.0])
    found, why, tried = search(Wolfe(max_trials=3), lambda step: (step, -1.0))  # it says to fall
    assert found is None
    assert why == "no lower loss found in 3 trials along the direction"
    assert len(tried) == 3


def test_a_direction_or_a_step_that_leads_nowhere_is_refused_before_any_trial():
    for function, first_step, text in (
        (quadratic(-1.0), 1.0, "the slope 1 along the direction is not negative"),
        (lambda step: (0.0, math.nan), 1.0, "the slope nan"),
        (quadratic(1.0), 0.0, "the first step 0 is not above 0"),
    ):
        found, why, tried = search(Wolfe(), function, first_step)
        assert (found, tried) == (None, [])
        assert text in why
