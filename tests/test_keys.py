"""Losses that take a random key: the same keys, whoever computes, wherever, however often."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import dbjax
from dbjax import Failure, optim
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.data.examples import ArrayExamples
from dbjax.data.portions import Portions
from dbjax.data.stream import Stream
from dbjax.model_parallel.sharding import ModelSharding
from dbjax.types import loss_of
from tests.checkpoint.stopped import Kept

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4)).astype(np.float32)
Y = X @ np.arange(4, dtype=np.float32)
SEED = 3
RULE = optax.sgd(0.05, momentum=0.5)
CLUSTER = dbjax.Cluster(
    compute_s=0.1,
    latency_s=1e-3,
    machine=dbjax.Machine(law="lognormal", sigma=0.3),
)


def dropout(params, batch, key):
    inputs, targets = batch
    kept = jax.random.bernoulli(key, 0.5, inputs.shape)
    return jnp.mean((2 * kept * inputs @ params["w"] - targets) ** 2)


def drawn(params, batch, key):
    """Tells by its value which key it was given."""
    return jax.random.uniform(key) + 0 * jnp.sum(params["w"])


def task(loss=dropout, **kwargs):
    return dbjax.Task(
        {"w": jnp.zeros(4)}, loss, (X, Y), **{"batch_size": 8, "seed": SEED} | kwargs,
        takes_key=True,
    )  # fmt: skip


def folded(*numbers):
    """The recipe of the docs."""
    key = jax.random.key(SEED)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


@functools.cache
def value(*numbers):
    return float(jax.random.uniform(folded(*numbers)))


def told(result):
    """(replica, step, loss) of every mini-batch that was computed."""
    rows = [r for r in result.trace.rows if "loss" in r and r["node"].startswith("replica/")]
    return [(int(r["node"].split("/")[1]), r["step"], float(r["loss"])) for r in rows]


def require_recipe(result, replicas, steps):
    found = told(result)
    assert {(r, s) for r, s, _ in found} == {(r, s) for r in range(replicas) for s in range(steps)}
    assert [loss for *_, loss in found] == [value(r, s) for r, s, _ in found]


@functools.cache
def plain_loop(loss, steps, replicas=1):
    """Synchronous: each step takes the mean of the replicas' gradients."""
    gradient_fn = jax.jit(jax.grad(loss))
    params, state = {"w": jnp.zeros(4)}, RULE.init({"w": jnp.zeros(4)})
    for step in range(steps):
        batches = [
            Stream(ArrayExamples((X, Y)), 8, SEED, r, replicas).at(step) for r in range(replicas)
        ]
        gradients = [gradient_fn(params, b, folded(r, step)) for r, b in enumerate(batches)]
        mean = jax.tree.map(lambda *parts: sum(parts) / replicas, *gradients)
        updates, state = RULE.update(mean, state, params)
        params = optax.apply_updates(params, updates)
    return params["w"]


ROUNDINGS = 2e-6  # relative: sums in another order, 20 steps of 6e-8 each


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_one_replica_is_a_plain_loop(runtime, shards):
    config = downpour.Config(RULE, replicas=1, shards=shards, steps=20)
    found = dbjax.run(task(), config, runtime=runtime).params["w"]
    np.testing.assert_allclose(found, plain_loop(dropout, 20), rtol=ROUNDINGS)


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_synchronous_replicas_are_a_plain_loop(runtime):
    config = sgd.Config(RULE, replicas=3, shards=2, steps=10)
    found = dbjax.run(task(), config, runtime=runtime).params["w"]
    np.testing.assert_allclose(found, plain_loop(dropout, 10, 3), rtol=ROUNDINGS)


CONFIGS = {
    "downpour": downpour.Config(RULE, replicas=3, shards=2, steps=12),
    "overlapping": downpour.Config(
        RULE, replicas=3, shards=2, steps=12, n_fetch=3, n_push=2, overlap=True
    ),
    "backed up": downpour.Config(RULE, replicas=3, shards=2, steps=12, shard_backups=1),
    "synchronous": sgd.Config(RULE, replicas=3, shards=2, steps=12),
}
DEATHS = (Failure("replica/1", 0.55, 0.9), Failure("shard/0", 0.7, 1.1))
DYING = {"cluster": dataclasses.replace(CLUSTER, failures=DEATHS)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("given", [
    {}, {"cluster": CLUSTER}, {"runtime": "threads"},
    DYING,
], ids=["virtual", "cluster", "threads", "deaths"])  # fmt: skip
def test_every_mini_batch_has_the_key_of_its_replica_and_step(name, given):
    result = dbjax.run(task(drawn), CONFIGS[name], **given)
    require_recipe(result, replicas=3, steps=12)
    assert result.summary["deaths"] == (2 if given == DYING else 0)


def test_a_run_that_was_stopped_goes_on_with_the_same_keys():
    """Exactly, with mini-batches under way; and from what the shards know."""
    config = dataclasses.replace(CONFIGS["overlapping"], steps=None)
    given = {"cluster": CLUSTER, "checkpoint_every": dbjax.Every(0.37)}
    whole = dbjax.run(task(), config, until_s=2.0, **given)
    kept = Kept()
    dbjax.run(task(), config, until_s=0.9, checkpoints=kept, **given)
    again = dbjax.run(task(), config, until_s=2.0, resume=kept.latest, **given)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]
    assert again.summary["updates"] == whole.summary["updates"]
    shards_know = dataclasses.replace(kept.latest, exact=None)
    again = dbjax.run(task(drawn), config, until_s=2.0, resume=shards_know, cluster=CLUSTER)
    found = [(r, s, loss) for r, s, loss in told(again) if s > 12]
    assert found
    assert [loss for *_, loss in found] == [value(r, s) for r, s, _ in found]


@pytest.mark.parametrize("name", ["overlapping", "synchronous"])
def test_a_run_in_threads_is_replayed_with_the_same_keys(name):
    lines = []
    result = dbjax.run(task(), CONFIGS[name], runtime="threads", log=dbjax.EventLog(lines.append))
    again = dbjax.replay(task(), CONFIGS[name], dbjax.Script(lines))
    assert again.params_sha256 == result.summary["params_sha256"]


@functools.cache
def minimised():
    """By one process: each portion has its key, in every evaluation."""
    portions = dataclasses.replace(task().portions, keyed=False)
    batches = [portions.gather((i,)) for i in range(portions.count)]

    def loss(params):
        losses = [dropout(params, batch, folded(i)) for i, batch in enumerate(batches)]
        sizes = [len(batch[0]) for batch in batches]
        return sum(n * value for n, value in zip(sizes, losses, strict=True)) / len(X)

    return optim.minimise(loss, {"w": jnp.zeros(4)}, stops=optim.Stops(iterations=4))[0]["w"]


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("order", ["free", "fixed"])
def test_sandblaster_minimises_one_function(runtime, order):
    """60 examples in portions of 8: the last one is smaller."""
    config = sandblaster.Config(replicas=3, shards=2, steps=4, order=order)
    found = dbjax.run(task(), config, runtime=runtime).params["w"]
    # Four iterations of L-BFGS make more of a rounding, and step lengths depend on all of them.
    np.testing.assert_allclose(found, minimised(), rtol=1e-5)


def slope(params, batch, key):
    """Its gradient is of the key alone, and not of the data or their order."""
    return jnp.sum(jax.random.uniform(key, (4,)) * params["w"])


def test_another_seed_gives_other_keys():
    config = downpour.Config(optax.sgd(1.0), replicas=1, shards=2, steps=1)
    for seed in (SEED, SEED + 1):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), 0)
        found = dbjax.run(task(slope, seed=seed), config).params["w"]
        np.testing.assert_array_equal(found, -jax.random.uniform(key, (4,)))


def test_a_portion_that_two_samples_share_has_one_key():
    config = sandblaster.Config(replicas=2, shards=2, steps=3, sample=0.5, overlap=0.5)
    digests = {
        dbjax.run(task(), dataclasses.replace(config, order="fixed"), **given).summary[
            "params_sha256"
        ]
        for given in ({}, {"runtime": "threads"}, {"cluster": CLUSTER})
    }
    assert len(digests) == 1
    portions = pickle.loads(pickle.dumps(Portions(ArrayExamples((X, Y)), 8, SEED, keyed=True)))
    values = [float(loss_of(drawn, {"w": jnp.zeros(4)}, portions.gather((i,)))) for i in range(8)]
    assert values == [value(i) for i in range(8)]
    assert len(set(values)) == 8
    with pytest.raises(ValueError, match="unpack"):  # they cannot have one key together
        portions.gather((0, 1))


@pytest.mark.parametrize("seed", [0, 2**31 + 5, 2**32 - 1])
def test_keys_are_those_of_the_recipe(seed):
    """Also where seeds do not fit an int32; `value` makes them outside of a program, of ints."""
    parameters = {"w": jnp.zeros(4)}
    compiled = jax.jit(functools.partial(loss_of, drawn))
    seen = set()
    for replica in range(2):
        for step in (0, 1, 2**31):
            batch = Stream(ArrayExamples((X, Y)), 8, seed, replica, 2, keyed=True).at(step)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), replica), step)
            assert float(compiled(parameters, batch)) == float(jax.random.uniform(key))
            seen.add(float(jax.random.uniform(key)))
    assert len(seen) == 6
    assert compiled._cache_size() == 1  # nothing recompiles for another seed, replica or step


@pytest.mark.usefixtures("float64")
def test_keys_are_those_of_the_recipe_in_double_precision():
    test_keys_are_those_of_the_recipe(2**32 - 1)


def test_a_key_leaves_the_examples_as_they_are():
    plain, keyed = (
        Stream(ArrayExamples((X, Y)), 8, SEED, 1, 3, keyed=keyed) for keyed in (False, True)
    )
    for step in (0, 1, 7):
        assert all(map(np.array_equal, plain.at(step), keyed.at(step).batch))


def no_key(params, batch):
    return jnp.mean(batch[0] @ params["w"])


def by_name(params, batch, *, key):
    return drawn(params, batch, key)


def perhaps(params, batch, key=None):
    return no_key(params, batch)


@pytest.mark.parametrize(("loss", "takes_key", "text"), [
    (dropout, False, r"loss takes three arguments, \(params, batch, key\).*Task\.takes_key=True"),
    (jax.jit(dropout), False, r"takes three arguments.*takes_key=True"),
    (no_key, True, r"Task\.loss takes \(params, batch\): it must take \(params, batch, key\)"),
    (by_name, True, r"it must take \(params, batch, key\), since takes_key=True"),
    (by_name, False, r"it must take \(params, batch\)$"),
    (functools.partial(dropout, key=0), True, r"it must take \(params, batch, key\)"),
    (lambda params: 0.0, False, r"Task\.loss takes \(params\): it must take \(params, batch\)$"),
])  # fmt: skip
def test_a_loss_of_other_arguments_is_refused_in_one_line(loss, takes_key, text):
    with pytest.raises(TypeError, match=text) as caught:
        dbjax.Task({"w": jnp.zeros(4)}, loss, (X, Y), takes_key=takes_key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [no_key, perhaps, functools.partial(dropout, key=0)])
def test_a_loss_that_can_do_without_a_key_is_taken(loss):
    dbjax.Task({"w": jnp.zeros(4)}, loss, (X, Y))


def test_the_loss_of_a_cut_takes_a_key_too():
    sharding = ModelSharding((("a", 1),), ((".*", PartitionSpec()),), no_key)
    with pytest.raises(TypeError, match=r"Task\.sharding\.loss takes \(params, batch\)"):
        task(sharding=sharding)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_makes_no_key_is_refused(seed):
    with pytest.raises(ValueError, match=rf"Task\.seed={seed} must be a whole number from 0"):
        task(seed=seed)
