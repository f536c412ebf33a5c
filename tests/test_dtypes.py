"""Parameters of every floating dtype, from a run to its files and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour, sandblaster
from dbjax.checkpoint import Checkpoints
from dbjax.checkpoint.params import load_params, save_params
from dbjax.monitoring.metrics import params_sha256

DTYPES = [
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e4m3",
    "float8_e5m2",
]
X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
Y = X @ np.arange(6, dtype=np.float32)


@pytest.fixture
def dtype(request):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield jnp.dtype(request.param)
    jax.config.update("jax_enable_x64", before)


def loss(params, batch):
    w, b = params["w"].astype(jnp.float32), params["b"].astype(jnp.float32)
    return jnp.mean((batch[0] @ w + b - batch[1]) ** 2)


def initial(dtype):
    return {"w": jnp.full(6, 0.5).astype(dtype), "b": jnp.zeros((), dtype)}


def require_same(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


CONFIGS = {
    "momentum": downpour.Config(optax.sgd(0.1, momentum=0.5), replicas=2, shards=2, steps=4),
    "adagrad": downpour.Config(optim.downpour_adagrad(0.5), replicas=2, shards=1, steps=4),
    "sandblaster": sandblaster.Config(replicas=2, shards=2, steps=2),
}


CASES = [("momentum", dtype) for dtype in DTYPES] + [
    (name, dtype) for name in ("adagrad", "sandblaster") for dtype in ("bfloat16", "float8_e4m3fn")
]
dtypes = pytest.mark.parametrize("dtype", DTYPES, indirect=True)


@pytest.mark.parametrize(("name", "dtype"), CASES, indirect=["dtype"])
def test_a_run_its_checkpoint_and_its_replay(name, dtype, tmp_path):
    task, config = dbjax.Task(initial(dtype), loss, (X, Y), batch_size=8), CONFIGS[name]
    given = {"checkpoint_every": dbjax.Every(1.0)}
    whole = dbjax.run(task, config, **given)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.params)} == {dtype}
    assert not jnp.array_equal(whole.params["w"], task.params["w"])
    with Checkpoints(tmp_path) as checkpoints:
        half = 0.5 * whole.summary["time_s"]
        dbjax.run(task, config, until_s=half, checkpoints=checkpoints, **given)
        found = checkpoints.latest()
    assert found.exact is not None
    again = dbjax.run(task, config, resume=found, **given)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"] is not None
    require_same(whole.params, again.params)
    overwrite = dbjax.run(task, config, resume=dataclasses.replace(found, exact=None), **given)
    assert overwrite.summary["updates"] == whole.summary["updates"]

    lines = []
    threads = dbjax.run(task, config, runtime="threads", log=dbjax.EventLog(lines.append))
    replayed = dbjax.replay(task, config, dbjax.Script(lines))
    assert replayed.params_sha256 == threads.summary["params_sha256"]
    require_same(replayed.params, threads.params)


@dtypes
def test_saved_and_loaded(dtype, tmp_path):
    params = initial(dtype)
    save_params(tmp_path / "params", params)
    loaded = load_params(tmp_path / "params", jax.tree.map(jnp.zeros_like, params))
    require_same(params, loaded)
    assert params_sha256(loaded) == params_sha256(params)
    changed = params | {"b": jnp.ones((), dtype)}
    assert params_sha256(changed) != params_sha256(params)


@dtypes
def test_minimised_by_jax_and_by_numpy(dtype):
    def value_and_grad(params):
        residual = X @ params["w"].astype(np.float32) - Y
        gradient = 2 * X.T @ residual / len(X)
        return float((residual**2).mean()), {"w": gradient.astype(dtype)}

    start = {"w": np.full(6, 0.5).astype(dtype)}
    by_numpy, _ = optim.minimise(None, start, value_and_grad=value_and_grad)
    by_jax, _ = optim.minimise(lambda p: loss(p | {"b": jnp.zeros(())}, (X, Y)), start)
    assert isinstance(by_numpy["w"], np.ndarray)
    for found in (by_numpy, by_jax):
        assert found["w"].dtype == dtype
        # The minimiser is 0, 1, ..., 5, which each of these dtypes has; around it the gradient
        # of float32 arithmetic vanishes to 1e-5, what `Stops` ends at.
        np.testing.assert_allclose(found["w"].astype(np.float32), np.arange(6), atol=1e-4)


def test_leaves_of_types_that_nothing_holds_both_of_are_trained_in_one_shard():
    params = {"w": jnp.zeros(6, "float8_e4m3fn"), "b": jnp.zeros((), "float8_e5m2")}
    config = downpour.Config(optax.sgd(0.1), replicas=1, shards=1, steps=2)
    result = dbjax.run(dbjax.Task(params, loss, (X, Y), batch_size=8), config)
    assert result.summary["updates"] == 2
    assert {k: v.dtype for k, v in result.params.items()} == {k: v.dtype for k, v in params.items()}
