"""Parameters of every structure: a run is a plain loop, and gives back what it was given."""

import dataclasses
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour, sandblaster
from dbjax.checkpoint import Checkpoints
from dbjax.checkpoint.params import load_params, save_params
from dbjax.model_parallel.sharding import path_name
from tests.references import optax_loop

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype(np.float32)
Y = np.tanh(X @ RANDOM.normal(size=(6, 1)).astype(np.float32))[:, 0]
KERNEL, BIAS, HEAD = (
    jnp.asarray(0.3 * RANDOM.normal(size=shape), jnp.float32) for shape in ((6, 5), (5,), (5, 1))
)


def network(kernel, bias, head, x):
    return (jnp.tanh(x @ kernel + bias[None, :]) @ head)[:, 0]


class Module(nnx.Module):
    def __init__(self):
        self.layers = nnx.List(
            nnx.Linear(a, b, rngs=nnx.Rngs(i), use_bias=not i) for i, (a, b) in
            enumerate([(6, 5), (5, 1)])
        )  # fmt: skip

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))[:, 0]


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1, use_bias=False)(jnp.tanh(linen.Dense(5)(x)))[:, 0]


class Named(NamedTuple):
    kernel: Any
    bias: Any
    head: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    kernel: Any
    bias: Any
    head: Any


MODULE, NET = Module(), Net()
GRAPHDEF, STATE = nnx.split(MODULE, nnx.Param)
VARIABLES = NET.init(jax.random.key(0), X)


def of_linen(params, x):
    return NET.apply({"params": params}, x)


CASES = {
    "dict": ({"a": {"kernel": KERNEL, "bias": BIAS}, "b": np.asarray(HEAD)},
             lambda p, x: network(p["a"]["kernel"], p["a"]["bias"], p["b"], x)),
    "list": ([KERNEL, [BIAS], HEAD], lambda p, x: network(p[0], p[1][0], p[2], x)),
    "tuple": ((KERNEL, (BIAS, HEAD)), lambda p, x: network(p[0], *p[1], x)),
    "named tuple": (Named(KERNEL, BIAS, HEAD), lambda p, x: network(*p, x)),
    "dataclass": (Data(KERNEL, BIAS, HEAD), lambda p, x: network(p.kernel, p.bias, p.head, x)),
    "array": (jnp.zeros(6), lambda p, x: jnp.tanh(x @ p)),
    "NNX module": (MODULE, lambda p, x: p(x)),
    "NNX state": (STATE, lambda p, x: nnx.merge(GRAPHDEF, p)(x)),
    "NNX state, pure": (nnx.to_pure_dict(STATE), lambda p, x: nnx.merge(GRAPHDEF, p)(x)),
    "Linen": (VARIABLES, NET.apply),
    "Linen, frozen": (flax.core.freeze(VARIABLES["params"]),
                      lambda p, x: NET.apply({"params": p}, x)),
    "mixed": ({"net": MODULE, "scale": [jnp.ones(1)]}, lambda p, x: p["scale"][0] * p["net"](x)),
}  # fmt: skip
STEPS, RULE = 8, optax.adam(0.01)
TOLERANCE = 1e-6  # of numbers near 1: roundings of 6e-8, which 8 steps of Adam add to
cases = pytest.mark.parametrize("name", CASES)
of_nodes = pytest.mark.parametrize("name", ["dataclass", "NNX module", "NNX state"])
CONFIG = downpour.Config(RULE, replicas=1, shards=2, steps=STEPS)


def task(name):
    params, forward = CASES[name]

    def loss(params, batch):
        x, y = batch
        return jnp.mean((forward(params, x) - y) ** 2)

    return dbjax.Task(params, loss, (X, Y), batch_size=8)


def require_like(found, expected, tolerance=TOLERANCE):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert type(found) is type(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@cases
def test_one_replica_is_a_plain_loop(name):
    given = task(name)
    found = dbjax.run(given, CONFIG).params
    require_like(found, optax_loop(given, RULE, STEPS))
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), found, given.params)
    assert min(jax.tree.leaves(moved)) > 100 * TOLERANCE


@of_nodes
def test_a_run_that_was_interrupted_goes_on(name, tmp_path):
    """Exactly, and over another number of shards from what the shards knew."""
    given, cluster = task(name), dbjax.Cluster(compute_s=0.1)
    config = dataclasses.replace(CONFIG, n_fetch=2, local_rule=optax.adam(0.02))
    whole = dbjax.run(given, config, runtime="threads")
    with Checkpoints(tmp_path) as checkpoints:
        dbjax.run(given, config, until_s=0.35, checkpoints=checkpoints, cluster=cluster)
        middle = checkpoints.latest()
    again = dbjax.run(given, config, resume=middle, cluster=cluster)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]
    plain = dataclasses.replace(CONFIG, shards=3)
    with Checkpoints(tmp_path / "plain") as checkpoints:
        dbjax.run(given, CONFIG, until_s=0.35, checkpoints=checkpoints, cluster=cluster)
        middle = dataclasses.replace(checkpoints.latest(), exact=None)
    resharded = dbjax.run(given, plain, resume=middle)
    require_like(resharded.params, optax_loop(given, RULE, STEPS))


@of_nodes
def test_parameters_are_saved_and_loaded(name, tmp_path):
    params, _ = CASES[name]
    save_params(tmp_path / "params", params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    require_like(load_params(tmp_path / "params", zeros), params, tolerance=0)


def test_batch_methods_take_a_module_and_a_state():
    method = optim.GradientDescent()
    config = sandblaster.Config(method, replicas=2, shards=2, steps=2, order="fixed")
    given = task("NNX module")
    found = dbjax.run(given, config).params
    assert isinstance(found, Module)
    of_state = task("NNX state")
    expected, _ = optim.minimise(
        lambda p: of_state.loss(p, (X, Y)), STATE, method, optim.Stops(iterations=2)
    )
    # Gradients are sums in another order, and step lengths depend on their roundings.
    require_like(nnx.state(found), expected, tolerance=1e-5)
    assert float(given.loss(found, (X, Y))) < 0.9 * float(given.loss(given.params, (X, Y)))


def test_names_of_leaves_are_as_one_reads_them():
    for params in (MODULE, STATE, nnx.to_pure_dict(STATE)):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        assert names == ["layers/0/bias", "layers/0/kernel", "layers/1/kernel"]
    assert path_name(()) == "params"
    (path, _), *_ = jax.tree_util.tree_leaves_with_path({"a": [Data(KERNEL, BIAS, HEAD)]})
    assert path_name(path) == "a/0/kernel"
