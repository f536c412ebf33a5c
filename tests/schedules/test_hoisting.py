"""Rules as functions of their numbers: the same bytes, and one program for all rates."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbjax.parameter_server.optimizer import server_rule
from dbjax.schedules.hoisting import Hoisted

RULES = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.013),
    "rmsprop": optax.rmsprop,
    "centered": lambda rate: optax.rmsprop(rate, centered=True, momentum=0.8),
    "lion": optax.lion,
    "yogi": optax.yogi,
    "nadam": optax.nadam,
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "clipped": lambda rate: optax.chain(optax.clip(0.5), optax.sgd(rate)),
    "scheduled": lambda rate: optax.sgd(optax.exponential_decay(rate, 10, 0.9)),
    "scaled twice": lambda rate: optax.chain(optax.scale(rate), optax.scale(-0.37)),
    "masked": lambda rate: optax.masked(optax.adam(rate), {"w": True, "b": False}),
}
ONE_PROGRAM = ("sgd", "momentum", "adagrad", "adam", "adamw", "rmsprop", "lion", "yogi", "nadam")
RANDOM = np.random.default_rng(0)


def tree():
    return {
        "w": jnp.asarray(RANDOM.normal(size=(37, 5)), jnp.float32),
        "b": jnp.asarray(RANDOM.normal(size=7), jnp.float32),
    }


def hoisted(rule):
    server = server_rule(rule)
    params = tree()
    state = server.init(params)
    return server, params, state, Hoisted(server.apply, params, state, params, 1)


def require_same_bytes(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_the_same_bytes(name):
    server, params, state, function = hoisted(RULES[name](0.0123))
    compiled = jax.jit(function.__call__)
    found = params, state
    for _ in range(5):
        gradient = tree()
        params, state = server.apply(params, state, gradient, 4)
        found = compiled(function.constants, *found, gradient, 4)
        require_same_bytes((params, state), found)


@pytest.mark.parametrize("name", ONE_PROGRAM)
def test_one_program_serves_all_rates(name):
    _, params, state, first = hoisted(RULES[name](0.0123))
    server, *_, second = hoisted(RULES[name](0.37))
    assert first == second
    assert hash(first) == hash(second)
    gradient = tree()
    found = jax.jit(first.__call__)(second.constants, params, state, gradient, 4)
    require_same_bytes(server.apply(params, state, gradient, 4), found)


def test_other_rules_are_other_programs():
    found = [hoisted(rule)[-1] for rule in (optax.sgd(0.1), optax.adam(0.1), optax.lion(0.1))]
    assert len(set(found)) == 3
    assert hoisted(optax.sgd(0.1))[-1] != hoisted(optax.sgd(1.0))[-1]  # XLA leaves out the product


def test_arrays_and_numbers_of_an_inner_function_are_seen():
    def made(a, table):
        inner = jax.jit(lambda x: jnp.where(x > 0.5, x * a, x + table))
        return lambda x: inner(x) + 2.0

    x = jnp.array([0.1, 0.3, 0.9])
    first, second = (Hoisted(made(a, np.arange(3.0, dtype=np.float32)), x) for a in (0.3, 0.7))
    other = Hoisted(made(0.3, np.ones(3, np.float32)), x)
    assert first == second
    assert first != other
    np.testing.assert_array_equal(first(second.constants, x), made(0.7, np.arange(3.0))(x))


def test_programs_inside_an_operation_are_not_taken_for_each_other():
    def made(table):
        inner = jax.jit(lambda x: x * table)
        return lambda x: jax.lax.cond(x[0] > 0, inner, lambda x: x, x)

    x = jnp.ones(3)
    first, second = (Hoisted(made(np.full(3, a, np.float32)), x) for a in (2.0, 5.0))
    assert first != second
    np.testing.assert_array_equal(second(second.constants, x), [5.0, 5.0, 5.0])


def test_structures_of_the_same_name_are_told_apart():
    def made():
        return collections.namedtuple("State", ["value"])

    first, second = made(), made()
    assert Hoisted(lambda x: first(x + 2.5), 1.0) != Hoisted(lambda x: second(x + 2.5), 1.0)
    assert Hoisted(lambda x: first(x + 2.5), 1.0) == Hoisted(lambda x: first(x + 1.5), 1.0)
