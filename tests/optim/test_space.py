"""What performing commands costs, and how exact it is; what it does: test_lbfgs.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.optim import Combine, Dots, Lbfgs, Stops, minimise
from dbjax.optim.space import perform
from dbjax.optim.vector_program import _compiled


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_copy_is_another_name_and_costs_nothing(xp):
    vectors = {"params": {"w": xp.ones(3)}, "a": {"w": xp.arange(3.0)}}
    old = vectors["a"]
    perform(vectors, [
        Combine("b", ((1.0, "a"),)), Combine("a", ((2.0, "b"),)),
        Combine("c", ((1.0, "a"),)), Combine("d", ((1.0, "b"),)),
    ])  # fmt: skip
    assert vectors["b"] is old
    assert vectors["d"] is old
    assert vectors["c"] is vectors["a"]
    assert vectors["c"]["w"].tolist() == [0, 2, 4]


def test_the_length_of_the_history_compiles_nothing():
    def loss(p):
        return 0.5 * jnp.sum(jnp.arange(1.0, 31.0) * p**2)

    def programs(iterations, memory):
        minimise(loss, jnp.ones(30), Lbfgs(memory), Stops(0.0, -1.0, iterations=iterations))
        return _compiled.cache_info().misses

    few = programs(2, memory=8)
    assert programs(12, memory=8) == few
    assert programs(2, memory=7) > few  # another program: the count is of something


SHAPES = [(), (1,), (5,), (1023,), (1024,), (2500,), (3, 5), (7, 300), (2, 9000), (3, 4, 5, 260)]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_dots_of_leaves_of_every_shape(dtype):
    random = np.random.default_rng(0)
    vectors = {
        name: [jnp.asarray(random.normal(size=shape), dtype) for shape in SHAPES]
        for name in ("params", "a", "b", "c")
    }
    flat = {
        name: np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in vector])
        for name, vector in vectors.items()
    }
    names = ("a", "b", "c") * 5  # more products than there are in one pass
    found = perform(vectors, [Dots(("a", "c"), names), Dots(("b",), (*names, "a"))])
    expected = [flat[r] @ flat[c] for r in ("a", "c") for c in names]
    expected += [flat["b"] @ flat[c] for c in (*names, "a")]
    # products of 16 bits are exact in float32, in which sums go wrong by about 1e-7 |a| |b|
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7 * (flat["a"] @ flat["a"]))
    on_numpy = {name: jax.tree.map(np.asarray, vector) for name, vector in vectors.items()}
    single = perform(on_numpy, [Dots(("a",), ("a", "b"))])
    np.testing.assert_allclose(single, found[:2], rtol=0, atol=3e-7 * found[0])


def test_a_long_float32_vector_loses_nothing():
    x = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    exact = float(x.astype(np.float64) @ x.astype(np.float64))
    for vector in (x, jnp.asarray(x)):
        (found,) = perform({"params": vector}, [Dots(("params",), ("params",))])
        assert found == pytest.approx(exact, rel=3e-7)
    assert np.cumsum(x * x)[-1] != pytest.approx(exact, rel=1e-5)  # one after another


def test_float64_stays_and_is_summed_in_it():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=5000))
        vectors = {"params": x}
        (found,) = perform(
            vectors, [Combine("a", ((0.1, "params"), (0.2, "params"))), Dots(("a",), ("params",))]
        )
        exact = 0.3 * float(np.asarray(x) @ np.asarray(x))
        assert vectors["a"].dtype == np.float64
    assert found == pytest.approx(exact, rel=1e-14)


def test_what_is_not_finite_stays_so():
    ones = jnp.ones((4, 300))
    vectors = {"params": ones, "inf": ones.at[0, 1].set(jnp.inf), "nan": ones.at[3, 2].set(jnp.nan)}
    replies = perform(vectors, [
        Combine("sum", ((1.0, "inf"), (-1.0, "inf"), (1.0, "params"))), Combine("zero"),
        Dots(("params",), ("inf", "nan", "params", "sum", "zero")),
    ])  # fmt: skip
    np.testing.assert_array_equal(replies, [np.inf, np.nan, 1200.0, np.nan, 0.0])


def test_a_vector_that_does_not_exist_is_named():
    for command in (Combine("a", ((1.0, "b"),)), Combine("a", ((2.0, "b"),)), Dots(("b",), ("b",))):
        with pytest.raises(KeyError, match="b"):
            perform({"params": np.ones(2)}, [command])
