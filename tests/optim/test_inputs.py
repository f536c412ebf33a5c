"""What is no parameter is refused, by name and with what to do instead."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour
from dbjax.models import build
from dbjax.optim.inputs import require_parameters

X = np.ones((16, 3), np.float32)


def loss(params, batch):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) + jnp.mean(batch)


def module(**parts):
    made = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def tied():
    made = nnx.List([module(), module()])
    made[1].kernel = made[0].kernel
    return made


def with_statistics():
    return module(norm=nnx.BatchNorm(3, rngs=nnx.Rngs(0)))


def with_keys():
    return module(dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))


LINEN = flax.linen.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
SPLIT = r"nnx\.split\(model, nnx\.Param, \.\.\.\)"
REFUSED = {
    "statistics": (with_statistics(),
                   rf"^params/norm/mean is an nnx\.BatchStat, .*{SPLIT}.*own stat.*LayerNorm"),
    "statistics of a state": (nnx.state(with_statistics()), "^params/norm/mean is an nnx.BatchSt"),
    "statistics further in": ({"a": [with_statistics()]}, "^params/a/0/norm/mean is an nnx.Batch"),
    "keys": (with_keys(), rf"^params/dropout/rngs/count is an nnx\.RngCount, .*{SPLIT}.*takes_key"),
    "keys in a state": (nnx.state(with_keys()), "^params/dropout/rngs/count is an nnx.RngCount"),
    "keys alone": (nnx.Rngs(0), "^params/default/count is an nnx.RngCount"),
    "another variable": (module(seen=nnx.Cache(jnp.ones(3))),
                         rf"^params/seen is an nnx\.Cache, .*{SPLIT}.*make it an nnx\.Param"),
    "an array of a module": (module(table=jnp.ones(3)),
                             rf"^params/table is an array in a module but not an nnx\.Param;"
                             rf" .*{SPLIT}"),
    "tied": (tied(), rf"^params/1/kernel is the same variable as params/0/kernel, .*{SPLIT}"),
    "Linen": (LINEN, r"^params/batch_stats/mean is a running statistic, .*variables\['params'\]"),
    "Linen, flattened": (
        flax.traverse_util.flatten_dict(LINEN, sep="/"), "^params/batch_stats/mean is a running"),
    "Linen, by tuples": (flax.traverse_util.flatten_dict(LINEN), "batch_stats.* is a running stat"),
    "Linen, frozen": (flax.core.freeze(LINEN), "^params/batch_stats/mean is a running statistic"),
}  # fmt: skip
refused = pytest.mark.parametrize(("params", "text"), REFUSED.values(), ids=list(REFUSED))


@refused
def test_what_is_no_parameter_is_refused(params, text):
    with pytest.raises(TypeError, match=text) as caught:
        dbjax.Task(params, loss, X)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=text):
        optim.minimise(lambda p: 0.0, params)
    made_late = dbjax.Task(lambda: params, loss, X, batch_size=8)
    with pytest.raises(TypeError, match=text):
        dbjax.run(made_late, downpour.Config(replicas=1, steps=1))


class Own(nnx.Param):
    """A parameter of a user's own class."""


TAKEN = {
    "a module": module(),
    "a class of its own": module(bias=Own(jnp.ones(3))),
    "dropout without keys": module(dropout=nnx.Dropout(0.5)),
    "parameters alone": nnx.state(with_statistics(), nnx.Param),
    "tied, split": nnx.split(tied(), nnx.Param, ...)[1],
    "a variable": nnx.Param(jnp.ones(3)),
    "Linen": LINEN["params"],
    "one of ours": build("mlp", inputs=3, classes=2, seed=0, widths=(4,)).params,
    "what is called as statistics are": {"mean": jnp.ones(3), "var": jnp.ones(3)},
}


@pytest.mark.parametrize("params", TAKEN.values(), ids=list(TAKEN))
def test_what_is_a_parameter_is_taken(params):
    require_parameters(params)


def test_tied_weights_stay_tied_in_a_state():
    """The gradients of both uses count, as in a plain loop."""
    graphdef, params, _ = nnx.split(tied(), nnx.Param, ...)

    def squares(p, batch):
        model = nnx.merge(graphdef, p)
        return jnp.mean((model[1](model[0](batch)) - 1) ** 2)

    task = dbjax.Task(params, squares, X, batch_size=8)
    rule = optax.sgd(0.1)
    found = dbjax.run(task, downpour.Config(rule, replicas=1, shards=2, steps=3)).params
    expected = params
    for step in range(3):
        gradient = jax.grad(squares)(expected, task.batches(0, 1).at(step))
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradient)
    assert len(jax.tree.leaves(found)) == 3
    # Roundings of 6e-8, which three steps add to.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
