"""Which rules may run on slices."""

import jax.numpy as jnp
import optax
import pytest

from dbjax.optim import downpour_adagrad, require_elementwise

ELEMENTWISE = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "adagrad": optax.adagrad(0.1),
    "downpour_adagrad": downpour_adagrad(0.1),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3),
    "lion": optax.lion(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "clip": optax.chain(optax.clip(0.5), optax.sgd(0.1)),
}
NOT = {
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "clip_by_block_rms": optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "scale_by_trust_ratio": optax.lamb(1e-3),
    "normalize_by_update_norm": optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)),
    "add_noise": optax.noisy_sgd(0.1, key=0),
    "scale_by_factored_rms": optax.adafactor(1e-3),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_rules_pass(name):
    require_elementwise(ELEMENTWISE[name])


@pytest.mark.parametrize("name", NOT)
def test_others_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"^{name} is not elementwise: .* use shards=1"):
        require_elementwise(NOT[name])


def test_a_rule_that_needs_more_than_a_gradient_is_refused():
    with pytest.raises(ValueError, match="cannot run on a shard"):
        require_elementwise(optax.lbfgs())


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        require_elementwise(optax.sgd(0.1), dtype=jnp.int32)
