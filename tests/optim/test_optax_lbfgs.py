"""L-BFGS as optax transforms, against plain references and against optax's own."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbjax.data import load
from dbjax.optim import lbfgs, scale_by_vector_free_lbfgs
from dbjax.optim.lbfgs import direction_coefficients
from dbjax.optim.optax_lbfgs import ZOOM
from tests.references import dense_inverse_hessian, pairs_taken, two_loops

START = {"b": jnp.array(0.7), "w": jnp.array([[-0.9, 1.5, 0.4], [0.3, -1.1, 0.8]])}


def convex(p):
    b, w = p["b"], p["w"].ravel()
    return jnp.sum(jnp.cosh(w)) + 0.5 * b**2 + 0.5 * jnp.sum(jnp.diff(w)) ** 2 + b * w[0] / 2


def wavy(p):  # concave around 0
    return jnp.sum(p["w"] ** 4 - 2 * p["w"] ** 2) + 0.5 * p["b"] ** 2 + p["b"] * p["w"][0, 0]


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def trajectory(transform, loss, params, steps, rate=0.2):
    """Small steps along the direction: params, gradient and H gradient of each, flat."""
    params = jax.tree.map(jnp.asarray, params)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(params, state):
        gradient = jax.grad(loss)(params)
        direction, state = transform.update(gradient, state, params)
        moved = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return (params, gradient, direction), moved, state

    state, seen = transform.init(params), []
    for _ in range(steps):
        now, params, state = step(params, state)
        seen.append([flat(part) for part in now])
    assert step._cache_size() == 1  # nothing recompiles
    return seen, state


def taken(seen, memory, damped=False):
    """The last `memory` pairs that are fit, of parameters and gradients that were seen."""
    points, gradients, _ = zip(*seen, strict=True)
    return pairs_taken(points, gradients, memory, damped=damped)


def expected(s, y, gradient):
    """H gradient; a first step of length 1 at most."""
    return -two_loops(s, y, gradient) if s else gradient * min(1, 1 / np.linalg.norm(gradient))


def close(found, right, error):
    """Against the largest coordinate: float64's 1e-16, for sums of some ten products."""
    np.testing.assert_allclose(found, right, rtol=0, atol=error * np.abs(right).max())


@pytest.fixture
def start(float64):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), START)


@pytest.mark.parametrize("memory", [1, 3, 8])
def test_12_directions_are_those_of_the_plain_references(start, memory):
    seen, _ = trajectory(scale_by_vector_free_lbfgs(memory), convex, start, 12)
    for k, (_, gradient, direction) in enumerate(seen):
        s, y = taken(seen[: k + 1], memory)
        assert len(s) == min(k, memory)
        close(direction, expected(s, y, gradient), 1e-13)
        if k:
            close(direction, dense_inverse_hessian(s, y, 7) @ gradient, 1e-13)
    for wrong in ([], []), (s[:-1], y[:-1]), (s[::-1], y[::-1]):
        if len(wrong[0]) != 1:
            assert not np.allclose(direction, expected(*wrong, gradient), rtol=1e-3)


@pytest.mark.parametrize("damped", [False, True])
def test_15_pairs_of_negative_curvature_are_left_out_or_damped(start, damped):
    near = jax.tree.map(lambda x: x / 10, start)
    transform = scale_by_vector_free_lbfgs(4, damped=damped)
    seen, state = trajectory(transform, wavy, near, 14)
    left_out = 13 - len(taken(seen, 13)[0])
    assert 0 < left_out < 13
    assert state.taken == (13 if damped else 13 - left_out)
    otherwise = []
    for k, (_, gradient, direction) in enumerate(seen):
        right, wrong = (
            expected(*taken(seen[: k + 1], 4, way), gradient) for way in (damped, not damped)
        )
        assert direction @ gradient > 0
        close(direction, right, 1e-11)  # around 0 y is small against s: a condition of 1e4
        otherwise.append(not np.allclose(direction, wrong, rtol=1e-3))
    assert any(otherwise)


def regression():
    """Softmax regression on 500 digits, with a constant input and l2 of 0.01 / 2."""
    digits = jax.tree.map(lambda x: x[:500], load("digits").train.tree)
    inputs = jnp.concatenate([digits.inputs, jnp.ones((500, 1))], 1)

    def loss(w):
        losses = optax.softmax_cross_entropy_with_integer_labels(inputs @ w, digits.labels)
        return jnp.mean(losses) + 0.005 * jnp.sum(w**2)

    return loss, jnp.zeros((65, 10))


def rosenbrock():
    def loss(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return loss, jnp.tile(jnp.array([-1.2, 1.0]), 5)


def minimised(solver, loss, params, norm, most=300):
    """optax's own loop for L-BFGS, until |gradient| <= norm or `most` evaluations were made.

    Returns: params, |gradient|, evaluations, and how often the step was compiled.
    """
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        left = optax.tree.norm(optax.tree.get(state, "grad"))
        trials = optax.tree.get(state, "info").num_linesearch_steps
        return optax.apply_updates(params, updates), state, left, trials

    state, evaluations, left = solver.init(params), 1, np.inf
    while left > norm and evaluations < most:
        params, state, left, trials = step(params, state)
        evaluations += int(trials)
    return params, left, evaluations, step._cache_size()


# |gradient| / (least curvature) bounds the distance to a minimum: 1e-4 / 0.01 from the l2
# term, and 1e-2 / 0.4 at Rosenbrock's; twice that between two results.
@pytest.mark.parametrize(
    ("problem", "norm", "apart"), [(regression, 1e-4, 2e-2), (rosenbrock, 1e-2, 5e-2)]
)
def test_reaches_optaxs_minimum_in_its_loop_with_as_many_evaluations(problem, norm, apart):
    loss, start = problem()
    theirs, _, as_many, _ = minimised(optax.lbfgs(memory_size=10), loss, start, norm)
    ours, left, evaluations, compiled = minimised(lbfgs(), loss, start, norm)
    assert left <= norm
    assert optax.tree.norm(ours - theirs) <= apart
    assert evaluations <= 1.25 * as_many
    assert compiled == 1  # optax's own: 2
    steepest = optax.chain(optax.scale(-1.0), ZOOM)
    elsewhere, left, _, _ = minimised(steepest, loss, start, norm, most=1.25 * as_many)
    assert left > norm
    assert optax.tree.norm(elsewhere - theirs) > apart


@pytest.mark.parametrize("damped", [False, True])
def test_steps_of_zero_nan_or_too_much_leave_the_pairs_alone(damped):
    transform = scale_by_vector_free_lbfgs(2, damped=damped)
    update = jax.jit(transform.update)
    params, gradient = jnp.ones(3), jnp.array([0.1, 0.2, 0.3])
    _, first = update(gradient, transform.init(params), params)
    for shift, factor in ((0, 1), (0, jnp.nan), (1e-3, 1e25)):  # the last: |y|^2 overflows
        _, state = update(gradient * factor, first, params + shift)
        direction, state = update(gradient, state, params)
        assert state.taken == 0
        np.testing.assert_array_equal(direction, gradient)
    _, state = update(2 * gradient, first, params + gradient)
    assert state.taken == 1


def test_dtypes_stay_and_complex_numbers_are_pairs_of_real_ones():
    mixed = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((2, 2)), "c": jnp.ones(2, jnp.complex64)}
    transform = scale_by_vector_free_lbfgs(3)
    before = transform.init(mixed)
    direction, after = jax.eval_shape(transform.update, mixed, before, mixed)
    assert jax.tree.map(jax.typeof, direction) == jax.tree.map(jax.typeof, mixed)
    assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, after)

    random = np.random.default_rng(0)
    path = random.normal(size=(2, 6, 4)).astype(np.float32)
    states = [transform.init(jnp.zeros(2, jnp.complex64)), transform.init(jnp.zeros(4))]
    for x, noise in zip(*path, strict=True):
        g = 2 * x + noise / 4
        of_complex, states[0] = transform.update(g[:2] + 1j * g[2:], states[0], x[:2] + 1j * x[2:])
        of_real, states[1] = transform.update(jnp.asarray(g), states[1], jnp.asarray(x))
    # of about 1, in float32: 1.2e-7 an operation, in sums of eight products
    np.testing.assert_allclose(of_complex.real, of_real[:2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(of_complex.imag, of_real[2:], rtol=0, atol=1e-6)
    assert states[0].taken == 5


@pytest.mark.parametrize("pairs", [0, 3])
def test_absent_pairs_contribute_nothing_in_numpy_and_in_jax(pairs):
    random = np.random.default_rng(pairs)
    s, gradient = random.normal(size=(pairs, 9)), random.normal(size=9)
    y = s * np.linspace(1, 5, 9)
    absent = np.zeros((4, 9))
    basis = np.concatenate([absent, s, absent, y, gradient[None]])
    gram = basis @ basis.T
    coefficients = direction_coefficients(gram)
    there = np.flatnonzero(basis.any(1))
    plain = direction_coefficients(gram[np.ix_(there, there)])
    np.testing.assert_array_equal(coefficients[~basis.any(1)], 0)
    np.testing.assert_allclose(coefficients[there], plain, rtol=1e-15)  # zeros are added
    traced = jax.jit(direction_coefficients)(jnp.asarray(gram, jnp.float32))
    # three steps of the recursion on coefficients below 1/4, in float32
    np.testing.assert_allclose(traced, coefficients, rtol=0, atol=1e-6)
    if pairs:
        gram[4, 4 + 7] *= 1.01
        assert not np.allclose(direction_coefficients(gram), coefficients, rtol=1e-3, atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="memory=0 must be at least 1"):
        scale_by_vector_free_lbfgs(0)
    transform = lbfgs()
    with pytest.raises(ValueError, match="update needs params"):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))
