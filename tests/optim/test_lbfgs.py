"""Batch methods against plain references, closed forms, and scipy and optax."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from dbjax.data import load
from dbjax.models import SpeechConfig, model
from dbjax.optim import (
    Combine,
    ConjugateGradients,
    Dots,
    GradientDescent,
    Lbfgs,
    Multiply,
    Stops,
    Wolfe,
    minimise,
)
from dbjax.optim.lbfgs import direction_coefficients
from dbjax.optim.minimise import LocalSpace
from dbjax.optim.space import Losses, perform
from tests.references import conjugate_gradients, dense_inverse_hessian, pairs_taken, two_loops


@pytest.mark.parametrize("pairs", [0, 1, 4, 10])
def test_12_vector_free_equals_two_loops_and_the_dense_matrix(pairs):
    random = np.random.default_rng(pairs)
    half = random.normal(size=(30, 30))
    hessian = half @ half.T + np.eye(30)
    s = [random.normal(size=30) for _ in range(pairs)]
    y = [hessian @ si for si in s]
    gradient = random.normal(size=30)
    basis = np.array([*s, *y, gradient])
    direction = direction_coefficients(basis @ basis.T) @ basis
    # float64 rounds by 1e-16; sums of 30 products, of a condition of 120 and directions of about 1
    np.testing.assert_allclose(direction, two_loops(s, y, gradient), rtol=0, atol=1e-13)
    dense = -dense_inverse_hessian(s, y, 30) @ gradient
    np.testing.assert_allclose(direction, dense, rtol=0, atol=1e-13)
    if pairs:
        wrong = two_loops(s[:-1], y[:-1], gradient)
        assert not np.allclose(direction, wrong, rtol=1e-3)


class Exact:
    """The minimum along a line of a quadratic, from two slopes."""

    async def search(self, evaluate, start, first_step):
        probe = await evaluate(1.0)
        return await evaluate(-start.slope / (probe.slope - start.slope)), ""


@pytest.mark.parametrize("memory", [1, 5, 10])
def test_11_with_exact_steps_on_a_quadratic_it_is_conjugate_gradients(memory):
    random = np.random.default_rng(0)
    half = random.normal(size=(12, 12))
    matrix, b = half @ half.T + np.eye(12), random.normal(size=12)
    expected = conjugate_gradients(matrix, b, 8)

    def value_and_grad(x):
        return 0.5 * x @ matrix @ x - b @ x, matrix @ x - b

    method = Lbfgs(memory=memory, wolfe=Exact())
    for k in (1, 4, 8):
        x, state = minimise(None, np.zeros(12), method, Stops(0.0, -1.0, iterations=k),
                            value_and_grad=value_and_grad)  # fmt: skip
        # float64, of a condition of 40; orthogonality is lost by about that factor a step
        np.testing.assert_allclose(x, expected[k], rtol=0, atol=1e-13)
        assert state.iteration == k
    inexact, _ = minimise(None, np.zeros(12), Lbfgs(memory=memory), Stops(0.0, -1.0, iterations=4),
                          value_and_grad=value_and_grad)  # fmt: skip
    assert not np.allclose(inexact, expected[4], rtol=1e-3)


class Always:
    """Takes the same step each time, wherever it leads."""

    async def search(self, evaluate, start, first_step):
        return await evaluate(0.2), ""


def double_well(x):
    """Concave around 0, so that s . y < 0 there; the first two are coupled."""
    coupling = np.array([x[1], x[0], 0.0, 0.0])
    return float(np.sum(x**4 - 2 * x**2) + x[0] * x[1]), 4 * x**3 - 4 * x + coupling


NEAR_0 = np.array([0.07, -0.09, 0.11, 0.04])


def iterated(method, steps):
    """Points, gradients and directions of that many iterations; the last state."""
    space = LocalSpace(double_well, NEAR_0)
    state = _run(method.start(space))
    points, gradients = [space.vectors["params"]], [space.vectors["gradient"]]
    directions = []
    for _ in range(steps):
        state = _run(method.iterate(space, state))
        points.append(space.vectors["params"])
        gradients.append(space.vectors["gradient"])
        directions.append(space.vectors["direction"])
    return points, gradients, directions, state


@pytest.mark.parametrize("vector_free", [True, False])
@pytest.mark.parametrize("damped", [False, True])
def test_15_pairs_of_negative_curvature_are_left_out_or_damped(damped, vector_free):
    """Each direction is that of the plain two loops on the pairs that should be there.

    In float64: its rounding of 1e-16, times the condition of the pairs' dot products, which damping
    can bring to 1e4.
    """
    method = Lbfgs(memory=3, damped=damped, vector_free=vector_free, wolfe=Always())
    points, gradients, directions, state = iterated(method, 12)
    otherwise = []
    for k, direction in enumerate(directions):
        pairs, others = (
            pairs_taken(points[: k + 1], gradients[: k + 1], 3, damped=way)
            for way in (damped, not damped)
        )
        right = two_loops(*pairs, gradients[k])
        np.testing.assert_allclose(direction, right, rtol=0, atol=1e-11 * np.abs(right).max())
        otherwise.append(not np.allclose(direction, two_loops(*others, gradients[k]), rtol=1e-3))
    bad = 11 - len(pairs_taken(points[:12], gradients[:12], 99)[0])
    assert 0 < bad < 11  # there were such pairs, and good ones after them
    assert any(otherwise)  # and they made a difference
    history = state.memory
    count = len(history.slots)
    assert count == 3
    assert all(history.gram[i, count + i] > 0 for i in range(count))


@pytest.mark.parametrize("damped", [False, True])
def test_15_from_a_hump_it_gets_to_the_minima(damped):
    """Of those that are not coupled: |gradient| <= 1e-6 where the curvature is 8, at |x| = 1."""
    method = Lbfgs(damped=damped, first_step=1e-3, wolfe=Wolfe(curvature=0.999, decrease=1e-6))
    x, state = minimise(None, NEAR_0, method, Stops(1e-6, -1.0), value_and_grad=double_well)
    assert state.stop.startswith("gradient norm")
    np.testing.assert_allclose(np.abs(x[2:]), 1.0, rtol=0, atol=1.3e-7)  # 1e-6 / 8


def _run(coroutine):
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


def rosenbrock(x):
    value = np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    return value, scipy.optimize.rosen_der(x)


def regression():
    digits = load("digits").train.tree
    inputs = np.concatenate([digits.inputs, np.ones((len(digits.inputs), 1))], 1).astype(float)
    onehot = np.eye(10)[digits.labels]

    def value_and_grad(w):
        logits = inputs @ w.reshape(65, 10)
        peak = logits.max(1, keepdims=True)
        log_sum = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
        loss = np.mean(log_sum[:, 0] - (logits * onehot).sum(1)) + 5e-4 * w @ w
        gradient = inputs.T @ (np.exp(logits - log_sum) - onehot) / len(inputs)
        return loss, gradient.ravel() + 1e-3 * w

    return value_and_grad


def quadratic(x):
    scales = np.geomspace(1, 1e6, len(x))
    return 0.5 * x @ (scales * x), scales * x


# (function, start, least curvature at the minimum)
PROBLEMS = {
    "logistic regression on digits": (regression, np.zeros(650), 1e-3),
    "Rosenbrock 2": (lambda: rosenbrock, np.tile([-1.2, 1.0], 1), 0.39),
    "Rosenbrock 10": (lambda: rosenbrock, np.tile([-1.2, 1.0], 5), 0.39),
    "Rosenbrock 100": (lambda: rosenbrock, np.tile([-1.2, 1.0], 50), 0.39),
    "Rosenbrock 1000": (lambda: rosenbrock, np.tile([-1.2, 1.0], 500), 0.39),
    "quadratic of condition 1e6": (lambda: quadratic, np.ones(15), 1.0),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_evaluations_are_within_one_and_a_half_of_scipys(name):
    make, start, curvature = PROBLEMS[name]
    function = make()
    options = {"maxcor": 10, "ftol": 0, "gtol": 1e-6, "maxiter": 20_000, "maxfun": 40_000}
    theirs = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    norm = float(np.linalg.norm(theirs.jac))
    stops = Stops(norm, -1.0, iterations=20_000, evaluations=40_000)
    _, state = minimise(None, start, Lbfgs(), stops, value_and_grad=function)
    assert state.stop.startswith("gradient norm")
    assert state.evaluations <= 1.5 * theirs.nfev
    # both lie above the minimum by at most |gradient|^2 / (2 least curvature)
    assert abs(state.loss - theirs.fun) <= norm**2 / (2 * curvature)


def test_agrees_with_optax_and_scipy_on_a_small_speech_network():
    network = model(SpeechConfig(inputs=20, width=16, depth=2, states=6), 0)
    random = np.random.default_rng(0)
    batch = (random.normal(size=(400, 20)).astype(np.float32), random.integers(6, size=400))
    flat, unravel = jax.flatten_util.ravel_pytree(network.params)
    full = jax.jit(jax.value_and_grad(lambda w: network.loss(unravel(w), batch)))
    theirs = scipy.optimize.minimize(
        lambda w: [np.asarray(v, np.float64) for v in full(w.astype(np.float32))],
        np.asarray(flat, np.float64), jac=True, method="L-BFGS-B",
        options={"maxcor": 10, "maxiter": 60, "maxfun": 400},
    )  # fmt: skip
    _, state = minimise(lambda p: network.loss(p, batch), network.params, Lbfgs(),
                        Stops(0.0, -1.0, iterations=theirs.nit))  # fmt: skip
    assert state.evaluations <= 1.5 * theirs.nfev
    assert state.loss <= theirs.fun + 0.1  # not convex: as good, not the same

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(lambda p: network.loss(p, batch))

    @jax.jit
    def step(params, state):
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient,
            value_fn=lambda p: network.loss(p, batch),
        )  # fmt: skip
        return optax.apply_updates(params, updates), state, value

    params, solved = network.params, solver.init(network.params)
    for _ in range(theirs.nit):
        params, solved, value = step(params, solved)
    assert state.loss <= float(value) + 0.1


@pytest.mark.parametrize("method", [GradientDescent(), ConjugateGradients(), Lbfgs(),
                                    Lbfgs(vector_free=False), Lbfgs(memory=1)])  # fmt: skip
def test_every_method_finds_the_minimum_of_a_jax_pytree(method):
    target = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(())}

    def loss(p):
        parts = jax.tree.map(lambda a, t: jnp.sum(jnp.cosh(a - t) - 1), p, target)
        return sum(jax.tree.leaves(parts))

    params, state = minimise(loss, jax.tree.map(jnp.zeros_like, target), method, Stops(3e-3, -1))
    assert state.stop.startswith("gradient norm")
    # |gradient| <= 3e-3, where the curvature is at least 1; and some roundings of 2.4e-7 at 5
    assert all(jnp.allclose(params[k], target[k], rtol=0, atol=3.01e-3) for k in target)


def test_trials_that_are_not_finite_shrink_the_step():
    def barrier(x):
        if np.any(x <= 0):
            return np.nan, np.full_like(x, np.nan)
        return float(np.sum(x - np.log(x))), 1 - 1 / x

    x, state = minimise(None, np.array([1e-3, 50.0]), Lbfgs(first_step=1e4), Stops(1e-8, -1.0),
                        value_and_grad=barrier)  # fmt: skip
    np.testing.assert_allclose(x, 1.0, rtol=1.01e-8)  # |gradient| <= 1e-8, of curvature 1
    assert state.stop.startswith("gradient norm")


def test_a_hopeless_search_says_why_and_leaves_the_parameters():
    def lying(x):
        return float(np.sum(x**2)), -2 * x  # uphill

    x, state = minimise(None, np.ones(3), Lbfgs(), value_and_grad=lying)
    assert state.stop == "line search: no lower loss found in 20 trials along the direction"
    assert np.array_equal(x, np.ones(3))
    _, state = minimise(None, np.ones(3), value_and_grad=lambda x: (np.nan, x))
    assert state.stop == "the loss is nan at the start"


def test_stops_are_named():
    for stops, reason in (
        (Stops(0.0, -1.0, iterations=3), "3 iterations"),
        (Stops(0.0, -1.0, evaluations=5), "5 evaluations"),
        (Stops(0.0, 1e-1, iterations=99), "relative decrease <= 0.1"),
        (Stops(1e3), "gradient norm"),
    ):
        _, state = minimise(None, np.array([-1.2, 1.0]), None, stops, value_and_grad=rosenbrock)
        assert state.stop.startswith(reason)


class Counting:
    """Counts round trips and scalars."""

    before = after = "gradient"

    def __init__(self, space):
        self.space, self.trips = space, []

    async def perform(self, *commands):
        replies = await self.space.perform(*commands)
        self.trips.append(len(replies))
        return replies

    async def evaluate(self, sample, *commands):
        self.trips.append("evaluate")
        return await self.space.evaluate(sample, *commands)


def trips_of_an_iteration(method, size, begun):
    """Round trips of one more iteration on Rosenbrock, and how many trials it had."""
    space = Counting(LocalSpace(rosenbrock, np.tile([-1.2, 1.0], size // 2)))
    state = _run(method.start(space))
    for _ in range(begun):
        state = _run(method.iterate(space, state))
    space.trips.clear()
    before = state.evaluations
    state = _run(method.iterate(space, state))
    return space.trips, state.evaluations - before


@pytest.mark.parametrize("size", [10, 1000])
def test_12_one_round_trip_and_o_of_m_scalars_whatever_the_size(size):
    trips, trials = trips_of_an_iteration(Lbfgs(memory=5), size, begun=12)
    # s, y and the gradient with 5 older pairs and themselves; then, for each trial, the
    # evaluation (the move goes with it), and the slope and the norm
    assert trips == [3 * (2 * 5 + 3)] + ["evaluate", 2] * trials


@pytest.mark.parametrize("memory", [1, 3, 5])
def test_the_two_loops_take_two_round_trips_a_pair(memory):
    trips, trials = trips_of_an_iteration(Lbfgs(memory=memory, vector_free=False), 10, begun=8)
    assert len(trips) - 2 * trials == 2 * memory + 2


@pytest.mark.parametrize("memory", [1, 3])
def test_a_pair_that_is_no_good_costs_no_other(memory):
    def waves(x):  # of curvature 9 at the minima, less elsewhere
        return float(np.sum(1e-2 * x**2 - np.cos(3 * x))), 2e-2 * x + 3 * np.sin(3 * x)

    method = Lbfgs(memory=memory, curvature=8.0)
    space = LocalSpace(waves, np.array([9.1, -8.7, 6.3]))
    state = _run(method.start(space))
    lengths, taken = [], []
    while state.gradient_norm > 1e-8 and not state.stop:
        before = state.memory.slots
        state = _run(method.iterate(space, state))
        lengths.append(len(state.memory.slots))
        taken.append(state.memory.slots != before)
        assert len(set(state.memory.slots)) == len(state.memory.slots)
    assert lengths == sorted(lengths)
    assert lengths[-1] == memory
    assert True in taken[1:]
    assert False in taken[1:]


def test_minimise_takes_what_people_give_it():
    target = np.array([1.0, 2.0, 3.0])
    x, _ = minimise(lambda p: jnp.sum((p - target) ** 2), np.zeros(3))
    # it stops where the gradient is 1e-5 or the loss falls by 1e-9: of curvature 2, 3.2e-5 away
    np.testing.assert_allclose(x, target, rtol=0, atol=3.2e-5)
    x, _ = minimise(lambda p: (p["a"] - 1.5) ** 2, {"a": 0.0})
    assert float(x["a"]) == pytest.approx(1.5, abs=3.2e-5)
    buffer = np.zeros(10)

    def reused(x):
        loss, buffer[:] = rosenbrock(x)
        return loss, buffer

    start = np.tile([-1.2, 1.0], 5)
    _, ours = minimise(None, start, stops=Stops(1e-6), value_and_grad=reused)
    _, same = minimise(None, start, stops=Stops(1e-6), value_and_grad=rosenbrock)
    assert ours.evaluations == same.evaluations < 200
    with pytest.raises(TypeError, match="params is int64; make it an array of floats"):
        minimise(None, np.array([5, 5]), value_and_grad=rosenbrock)


NAMES = ("params", "a", "b", "c")
terms = st.lists(st.tuples(st.floats(-2, 2, width=32), st.sampled_from(NAMES)), max_size=3)
commands = st.lists(
    st.one_of(
        st.builds(lambda out, t: Combine(out, tuple(t)), st.sampled_from(NAMES), terms),
        st.builds(Multiply, *[st.sampled_from(NAMES)] * 3),
        st.builds(lambda r, c: Dots(tuple(r), tuple(c)),
                  *[st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)] * 2),
    ), max_size=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(commands=commands)
def test_commands_do_the_same_on_jax_and_numpy_and_one_by_one(commands):
    start = {name: {"x": np.arange(1, 4) * (i + 1) / 8, "y": np.ones((2, 2)) * i}
             for i, name in enumerate(NAMES)}  # fmt: skip
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    numpy, single = dict(start), dict(start)
    replies = perform(numpy, commands)
    # float32 rounds by 6e-8; six commands of coefficients up to 2 make numbers of up to 1e3, which
    # may cancel
    np.testing.assert_allclose(perform(ours, commands), replies, rtol=1e-4, atol=1e-4)
    one_by_one = [reply for command in commands for reply in perform(single, [command])]
    assert one_by_one == replies.tolist()
    for name in NAMES:
        for part in ("x", "y"):
            np.testing.assert_array_equal(single[name][part], numpy[name][part])
            np.testing.assert_allclose(ours[name][part], numpy[name][part], rtol=1e-4, atol=1e-4)


def test_bad_settings_are_refused():
    for make, text in (
        (lambda: Lbfgs(memory=0), "Lbfgs.memory=0"),
        (lambda: Lbfgs(first_step=0.0), "first_step=0.0"),
        (lambda: Wolfe(decrease=0.95), "decrease=0.95"),
        (lambda: Wolfe(max_trials=0), "max_trials=0"),
    ):
        with pytest.raises(ValueError, match=text):
            make()


class Sampled:
    """Samples of a quadratic: k and k + 1 share examples of curvatures 1 + (k + i) mod 3."""

    before, after = "before", "after"

    def __init__(self, size):
        self.size, self.vectors = size, {"params": np.linspace(1.0, 2.0, size)}

    def shared(self, k):
        return 1.0 + (k + np.arange(self.size)) % 3

    async def perform(self, *commands):
        return perform(self.vectors, commands).tolist()

    async def evaluate(self, sample, *commands):
        perform(self.vectors, commands)
        x = self.vectors["params"]
        curvatures = {"before": self.shared(sample - 1), "after": self.shared(sample),
                      "gradient": np.full(self.size, 7.0)}  # fmt: skip
        self.vectors |= {name: a * x for name, a in curvatures.items()}
        before, after, total = (0.5 * x @ (a * x) for a in curvatures.values())
        return Losses(total, before, after)


def test_pairs_are_of_what_two_samples_share():
    method, space = Lbfgs(memory=4), Sampled(6)
    state = _run(method.start(space))
    for iteration in range(6):
        state = _run(method.iterate(space, state))
        if iteration:
            s, y = (space.vectors[f"{kind}{state.memory.slots[-1]}"] for kind in "sy")
            # a difference of two points, which are up to 1e2 times as large: 1e-16 of those
            np.testing.assert_allclose(y, space.shared(iteration - 1) * s, rtol=1e-13)
            assert not np.allclose(y, 7.0 * s)
