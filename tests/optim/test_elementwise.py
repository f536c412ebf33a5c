"""Which rules may run on slices. (tests/store/test_user_tree.py has all of optax's.)"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbjax.optim import downpour_adagrad, require_elementwise
from dbjax.optim.elementwise import transforms_of


def per_leaf(function):
    """A rule that makes each leaf's update of its gradient and its parameters."""
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates, params))


def doubled_in_a_loop(g, p):
    count_and_value = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, g))
    return count_and_value[1]


def newton(g, p):
    """Three steps towards the square root of 1 + g^2, as a scan."""
    square = 1 + g * g
    return jax.lax.scan(lambda x, _: (0.5 * (x + square / x), None), 1 + jnp.abs(g), None, 3)[0]


ELEMENTWISE = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "downpour_adagrad": downpour_adagrad(0.1),
    "adamw": optax.adamw(1e-3),
    "adamw with much decay": optax.adamw(1e-3, weight_decay=0.1),
    "adamw, all decay": optax.adamw(1e-3, weight_decay=1e4),
    "adamaxw": optax.adamaxw(1e-3, weight_decay=1.0),
    "lion": optax.lion(1e-3, weight_decay=10.0),
    "clip": optax.chain(optax.clip(0.5), optax.sgd(0.1)),
    "cancellation": per_leaf(lambda g, p: (p + 1e8 * g) - p),
    "steep": per_leaf(lambda g, p: jnp.exp(jnp.sin(1e6 * g))),
    "a loop": per_leaf(doubled_in_a_loop),
    "a scan": per_leaf(newton),
    "a choice by the count": optax.MultiSteps(optax.adam(0.1), 3),
    "functions with rules for derivatives": per_leaf(lambda g, p: jax.nn.relu(g) + jax.nn.silu(p)),
    "a number drawn for all": per_leaf(lambda g, p: g * jax.random.uniform(jax.random.key(0))),
    "a norm that nobody uses": optax.chain(optax.zero_nans(), optax.sgd(0.1)),
    "factored above 128, on less": optax.scale_by_factored_rms(),
}
NOT = {
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    # never reached by any gradient that one would try
    "clip_by_global_norm ": optax.clip_by_global_norm(1e30),
    "clip_by_block_rms": optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "scale_by_trust_ratio": optax.lamb(1e-3),
    "normalize_by_update_norm": optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)),
    "add_noise": optax.noisy_sgd(0.1, key=0),
    "scale_by_factored_rms": optax.scale_by_factored_rms(min_dim_size_to_factor=10_000),
    "apply_if_finite": optax.apply_if_finite(optax.sgd(0.1), 3),
}


def neighbours(g, p):
    return g + jnp.roll(g, 1, axis=0)


def by_place(g, p):
    return g * jnp.arange(g.size, dtype=g.dtype).reshape(g.shape)


def exchanged(updates, params):
    """Two leaves of one shape, each with the other's gradient."""
    return {"a": updates["b"], "b": updates["a"]}


SUBTLE = {
    "a sum over one axis": per_leaf(lambda g, p: g - g.sum(0, keepdims=True)),
    "0 times a norm": per_leaf(lambda g, p: g + 0 * jnp.sum(g)),
    "neighbours": per_leaf(neighbours),
    "the place in the leaf": per_leaf(by_place),
    "noise of a leaf's shape": per_leaf(
        lambda g, p: g + jax.random.normal(jax.random.key(0), g.shape)
    ),
    "reversed": per_leaf(lambda g, p: g[::-1]),
    "another leaf": optax.stateless(exchanged),
    "a branch by a norm": per_leaf(
        lambda g, p: jax.lax.cond(jnp.sum(g) > 1e30, lambda x: 2 * x, lambda x: x, g)
    ),
    "a loop by a norm": per_leaf(
        lambda g, p: jax.lax.while_loop(lambda x: jnp.sum(x) > 1e30, lambda x: x / 2, g)
    ),
    "a norm kept for the next update": optax.chain(
        optax.GradientTransformation(
            lambda p: jnp.zeros(()),
            lambda g, s, p: (jax.tree.map(lambda x: x * s, g), optax.tree.norm(g)),
        )
    ),
    "the first element": per_leaf(lambda g, p: g * p.reshape(-1)[0]),
}
BY_SHAPE = {
    "the size": per_leaf(lambda g, p: g / p.size),
    "the rows": per_leaf(lambda g, p: g * np.sqrt(len(p))),
    "a limit": per_leaf(lambda g, p: g if p.shape[0] > 5 else 2 * g),
    "the number of leaves": optax.stateless(
        lambda g, p: jax.tree.map(lambda x: x / len(jax.tree.leaves(g)), g)
    ),
}
PARAMS = {"a": jnp.ones((8, 6)), "b": jnp.ones((8, 6))}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_rules_pass(name):
    if "on less" not in name:
        require_elementwise(ELEMENTWISE[name])
    require_elementwise(ELEMENTWISE[name], params=PARAMS)


@pytest.mark.parametrize("name", NOT)
def test_others_are_refused_by_name(name):
    with pytest.raises(
        ValueError, match=rf"^{name.strip()} is not elementwise: .* use shards=1"
    ) as error:
        require_elementwise(NOT[name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SUBTLE)
def test_what_reads_another_element_is_refused(name):
    with pytest.raises(ValueError, match="is not elementwise"):
        require_elementwise(SUBTLE[name], params=PARAMS)


@pytest.mark.parametrize("name", BY_SHAPE)
def test_what_depends_on_a_shape_is_refused(name):
    with pytest.raises(ValueError, match="depends on shapes"):
        require_elementwise(BY_SHAPE[name], params=PARAMS)


@pytest.mark.parametrize("size", [127, 128, 512])
def test_a_factored_rule_passes_only_where_nothing_is_factored(size):
    params = {"w": jax.ShapeDtypeStruct((size, size), jnp.float32)}
    rule = optax.scale_by_factored_rms(min_dim_size_to_factor=128)
    if size < 128:
        require_elementwise(rule, params=params)
    else:
        with pytest.raises(ValueError, match="scale_by_factored_rms is not elementwise"):
            require_elementwise(rule, params=params)


def test_a_scalar_parameter_is_read_by_itself_only():
    params = {"w": jnp.ones((8, 6)), "gain": jnp.ones(())}
    require_elementwise(optax.adam(0.1), params=params)
    scaled = optax.stateless(lambda g, p: {"w": g["w"] * g["gain"], "gain": g["gain"]})
    with pytest.raises(ValueError, match="is not elementwise"):
        require_elementwise(scaled, params=params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_any_precision(dtype):
    require_elementwise(optax.adamw(1e-3, weight_decay=0.1), dtype)
    with pytest.raises(ValueError, match="clip_by_global_norm"):
        require_elementwise(optax.clip_by_global_norm(1.0), dtype)


def test_a_rule_that_needs_more_than_a_gradient_is_refused():
    with pytest.raises(ValueError, match="scale_by_zoom_linesearch cannot run on a shard"):
        require_elementwise(optax.lbfgs())


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        require_elementwise(optax.sgd(0.1), dtype=jnp.int32)


def test_a_rule_is_described_by_its_transforms_and_switches():
    adam, nadam = optax.adam(0.1), optax.nadam(0.1)
    assert transforms_of(adam) == transforms_of(optax.adam(0.5)) != transforms_of(nadam)
    assert transforms_of(optax.sgd(0.1)) != transforms_of(optax.sign_sgd(0.1))
    named = [optax.named_chain(("x", rule)) for rule in (adam, nadam)]
    assert transforms_of(named[0]) != transforms_of(named[1])
    injected = [optax.inject_hyperparams(make)(0.1) for make in (optax.adam, optax.sgd)]
    assert transforms_of(injected[0]) != transforms_of(injected[1])


def test_the_order_of_labels_means_nothing():
    rules = {"a": optax.adam(0.1), "b": optax.sgd(0.1)}
    back = dict(reversed(rules.items()))
    first, second = (optax.multi_transform(each, {"w": "a"}) for each in (rules, back))
    assert transforms_of(first) == transforms_of(second)


def test_a_rule_may_close_over_what_is_not_set():
    def make():
        def update(gradient, state, params=None):
            return (gradient if True else late), state

        made = optax.GradientTransformation(lambda _: (), update)
        if not made:
            late = None
        return made

    assert transforms_of(make()) == f"{test_a_rule_may_close_over_what_is_not_set.__name__}()"
