"""Downpour Adagrad against its formula, and against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbjax.optim import downpour_adagrad

RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.normal(size=(30, 5)).astype(np.float32)


# Of gamma = 0.3: 30 steps of 0.3 / sqrt(k) at most, and 30 sums below 1, each of which float32
# rounds by up to 6e-8: 3.5e-8 in the mean square, 2.7e-7 for all together; four times that.
ROUNDING = 1e-6


def run(rule, gradients, params):
    state = rule.init(params)
    for gradient in gradients:
        updates, state = rule.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(("initial", "epsilon"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (1.0, 0.5)])
def test_rate_is_gamma_over_root_of_sum_of_squares(initial, epsilon):
    w, total = np.zeros(5), np.full(5, initial)
    for gradient in GRADIENTS.astype(np.float64):
        total += gradient**2  # the current gradient is in the sum
        w -= 0.3 / (np.sqrt(total) + epsilon) * gradient
    rule = downpour_adagrad(0.3, initial_accumulator=initial, epsilon=epsilon)
    np.testing.assert_allclose(run(rule, GRADIENTS, jnp.zeros(5)), w, rtol=0, atol=ROUNDING)


def test_the_papers_form_steps_gamma_first_and_leaves_alone_what_has_no_gradient():
    first = run(downpour_adagrad(0.3), [np.array([5.0, -1e-4, 0.0], np.float32)], jnp.zeros(3))
    np.testing.assert_allclose(first, [-0.3, 0.3, 0.0], rtol=4 * 6e-8)  # square, root, rate, step


def test_agrees_with_optax_where_the_definitions_do():
    ours = run(downpour_adagrad(0.1), GRADIENTS, jnp.zeros(5))
    theirs = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0)
    np.testing.assert_allclose(
        ours, run(theirs, GRADIENTS, jnp.zeros(5)), rtol=0, atol=2 * ROUNDING / 3
    )
    assert not np.allclose(ours, run(optax.adagrad(0.1), GRADIENTS, jnp.zeros(5)), rtol=1e-3)


def test_gamma_may_follow_a_schedule():
    rule = downpour_adagrad(optax.piecewise_constant_schedule(1.0, {2: 0.0}))
    assert jnp.array_equal(
        run(rule, GRADIENTS, jnp.zeros(5)), run(rule, GRADIENTS[:2], jnp.zeros(5))
    )


def test_squares_of_bfloat16_are_summed_in_float32():
    rule = downpour_adagrad(1.0)
    ones = np.ones(1, jnp.bfloat16)
    state = rule.init(jnp.zeros(1, jnp.bfloat16))
    for _ in range(300):  # a bfloat16 sum stops at 256
        updates, state = rule.update(jnp.asarray(ones), state)
    assert state.sum_of_squares.dtype == jnp.float32
    assert float(state.sum_of_squares[0]) == 300.0
    assert updates.dtype == jnp.bfloat16


def test_trains_in_a_plain_optax_loop():
    rule = optax.chain(optax.clip(1.0), downpour_adagrad(0.5))
    w = jnp.array([3.0, -2.0])
    state = rule.init(w)
    for _ in range(200):
        updates, state = rule.update(jax.grad(lambda w: jnp.sum(w**2))(w), state)
        w = optax.apply_updates(w, updates)
    assert float(jnp.max(jnp.abs(w))) < 1e-3


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "0.1"])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=r"gamma=.* must be a finite number"):
        downpour_adagrad(bad)
    with pytest.raises(ValueError, match="initial_accumulator="):
        downpour_adagrad(0.1, initial_accumulator=bad)
