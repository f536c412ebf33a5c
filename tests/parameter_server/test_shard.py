"""A shard: exactly once, refusals, snapshots, versions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.errors import ServiceError
from dbjax.parameter_server import ParameterServer, Push, Shard, server_rule
from dbjax.runtime import VirtualRuntime

RULE = optax.sgd(0.5)


@pytest.fixture
def shard():
    made = Shard(types.SimpleNamespace(name="shard/0"), {"w": jnp.zeros(3)}, server_rule(RULE))
    made.fetch("r")
    return made


def push(sequence, value=1.0, *, replica="r", version=0, gradient=None):
    piece = {"w": jnp.full(3, value)} if gradient is None else gradient
    return Push(replica, sequence, version, 8, piece, 12)


def values(shard):
    return np.asarray(shard.peek().params["w"]).tolist()


def test_a_push_is_applied_once(shard):
    assert shard.push(push(0)) == 1
    assert shard.push(push(0)) == 1  # a retry
    assert values(shard) == [-0.5] * 3
    assert dataclasses.asdict(shard.report().counts) | {"bytes_fetched": 0} == {
        "applied": 1, "refused": 0, "repeated": 1, "examples": 8, "bytes_fetched": 0,
        "bytes_pushed": 12, "lost": 0,
    }  # fmt: skip
    shard.fetch("other")
    shard.push(push(0, replica="other", version=1))  # another replica's own numbers
    assert values(shard) == [-1.0] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_push_that_is_not_finite_changes_nothing(shard, bad):
    shard.push(push(0))
    before = values(shard)
    assert shard.push(push(1, bad)) == 2  # a version that differs in nothing
    assert values(shard) == before
    counts = shard.report().counts
    assert (counts.applied, counts.refused, counts.examples) == (1, 1, 8)
    shard.push(push(2))  # and the shard goes on
    assert values(shard) != before
    assert shard.report().counts.applied == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["scalar", "row", "matrix", "empty beside it"])
def test_a_value_that_is_not_finite_is_found_in_leaves_of_every_rank(where, bad):
    """In the last place of each; the others are as they were."""
    shapes = {"scalar": (), "row": (3,), "matrix": (2, 5), "empty": (0, 4)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    shard = Shard(types.SimpleNamespace(name="shard/0"), params, server_rule(RULE))
    shard.fetch("r")
    name = where.removesuffix(" beside it")
    gradient = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    if name != "empty":
        gradient[name].reshape(-1)[-1] = bad
    shard.push(push(0, gradient=jax.tree.map(jnp.asarray, gradient)))
    counts = shard.report().counts
    refused = int(name != "empty")
    assert (counts.refused, counts.applied) == (refused, 1 - refused)
    for key, value in shard.peek().params.items():
        assert np.array_equal(value, np.full(shapes[key], 1.0 if refused else 0.5))


@pytest.mark.parametrize(
    ("gradient", "text"),
    [
        ({"w": jnp.zeros(4)}, r"w is float32\[4\], the parameters are float32\[3\]"),
        ({"w": jnp.zeros(3, jnp.int32)}, "w is int32"),
        ({"v": jnp.zeros(3)}, "pieces do not match"),
    ],
)
def test_a_push_of_another_kind_is_an_error(shard, gradient, text):
    with pytest.raises(ValueError, match=text):
        shard.push(push(0, gradient=gradient))
    assert values(shard) == [0.0] * 3


def test_a_fetch_is_a_reference_and_never_changes(shard):
    snapshot = shard.fetch("r")
    assert snapshot is shard.fetch("r")
    shard.push(push(0))
    assert np.asarray(snapshot.params["w"]).tolist() == [0.0] * 3
    assert (snapshot.version, shard.fetch("r").version) == (0, 1)


def test_a_version_that_was_never_fetched_is_found_out(shard):
    with pytest.raises(RuntimeError, match="never fetched"):
        shard.push(push(0, version=7))


def test_reached_answers_when_it_is(shard):
    soon = shard.reached(1)
    assert shard.reached(0).done()
    assert not soon.done()
    shard.push(push(0))
    assert soon.done()


def test_pulled_slices_are_the_shards_own_arrays():
    runtime = VirtualRuntime()
    params = {"w": jnp.arange(10.0)}
    server = ParameterServer.serve(runtime, Shard, params, 2, server_rule(RULE))
    fetched = server.fetch(Shard.fetch, "driver").result()
    held = [shard.service.peek().params for shard in server.shards]
    assert all(fetched.slices[i][name] is held[i][name] for i in range(2) for name in held[i])


def overflowing(params, batch):
    return jnp.sum(params) * jnp.where(batch[0] > 0.9, jnp.inf, 1.0)


def test_refusals_are_in_the_summary():
    data = np.linspace(0, 1, 50, dtype=np.float32)
    task = dbjax.Task(jnp.zeros(4), overflowing, data, batch_size=1)
    config = downpour.Config(rule=optax.sgd(0.1), replicas=2, shards=2, steps=25)
    result = dbjax.run(task, config)
    bad = int(np.sum(data > 0.9))
    assert result.summary["refused_pushes"] == 2 * bad  # on both shards
    assert result.summary["updates"] == 50 - bad
    assert bool(jnp.all(jnp.isfinite(result.params)))


def test_rules_that_are_not_elementwise_are_refused_by_name():
    task = dbjax.Task(jnp.zeros(4), overflowing, np.zeros(50, np.float32), batch_size=1)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    with pytest.raises(ValueError, match="clip_by_global_norm"):
        dbjax.run(task, downpour.Config(rule=clipped, shards=2, steps=1))
    dbjax.run(task, downpour.Config(rule=clipped, shards=1, replicas=1, steps=1))
    with pytest.raises(ValueError, match="clip_by_global_norm"):
        dbjax.run(task, sgd.Config(rule=clipped, replicas=2, shards=2, steps=1))


def test_a_wrong_gradient_names_service_and_time():
    runtime = VirtualRuntime()
    server = ParameterServer.serve(runtime, Shard, {"w": jnp.zeros(3)}, 1, server_rule(RULE))

    async def main(node):
        await server.fetch(Shard.fetch, node.name)
        await server.push(Shard.push, [push(0, gradient={"w": jnp.zeros(2)})])

    runtime.spawn("replica/0", main)
    with pytest.raises(ServiceError, match=r"shard/0\.push, called by replica/0, failed at 0 s"):
        runtime.run()
