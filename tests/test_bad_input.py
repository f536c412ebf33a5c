"""What a user may get wrong at the library's border: one line each, before anything is begun."""

import contextlib
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Checkpoints
from dbjax.data import ArrayExamples, Frames, Labelled, Splits, Stream, images
from dbjax.data.most_frequent import MostFrequent
from dbjax.data.portions import Portions
from dbjax.models import build, functional
from dbjax.runtime.ray import RayOptions

X = np.random.default_rng(0).normal(size=(61, 6)).astype(np.float32)
Y = X @ np.arange(6, dtype=np.float32)
P = {"w": jnp.zeros(6)}
CONFIG = downpour.Config(optax.sgd(0.01), replicas=1, shards=1, steps=1)


def mean(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def total(params, batch):
    return jnp.sum((batch[0] @ params["w"] - batch[1]) ** 2)


@contextlib.contextmanager
def one_line(text):
    """A mistake of the user's, said in one line that matches."""
    with pytest.raises((ValueError, TypeError), match=text) as found:
        yield
    assert len(str(found.value).splitlines()) == 1


class Mine:
    """Examples of a class of the user's own, that go wrong later."""

    def __init__(self, later=None, size=61):
        self.later, self.size, self.calls = later, size, 0

    def __len__(self):
        return self.size

    def gather(self, indices):
        self.calls += 1
        batch = X[indices], Y[indices]
        return self.later(batch) if self.later and self.calls > 4 else batch


def run(params=P, loss=mean, data=(X, Y), config=CONFIG, batch_size=8, evaluate=None, **options):
    """A whole run, from the task on."""
    task = dbjax.Task(params, loss, data, batch_size, evaluate)
    return dbjax.run(task, config, **options)


def one_step(**fields):
    return dataclasses.replace(CONFIG, **fields)


def minimised(gradient=lambda w: 2 * w, loss=lambda w: w @ w, params=None, **options):
    start = np.ones(3) if params is None else params
    return optim.minimise(None, start, value_and_grad=lambda w: (loss(w), gradient(w)), **options)


def classified(labels, model="softmax", data=None):
    network = build(model, inputs=6, classes=3, seed=0)
    return dbjax.Task(network.params, network.loss, data or (X[: len(labels)], labels))


def read(monkeypatch, examples, keys=("image", "label"), **options):
    """A set of TFDS with these examples in both of its splits."""
    label = types.SimpleNamespace(num_classes=3)
    builder = types.SimpleNamespace(
        name="some",
        data_path=types.SimpleNamespace(exists=lambda: True),
        info=types.SimpleNamespace(
            supervised_keys=keys, features={"label": label}, splits=("train", "test")
        ),
        as_data_source=lambda split: examples,
    )
    monkeypatch.setattr(images, "_builder", lambda name, data_dir: builder)
    return images.tfds_images("some", "nowhere", **options)


PARAMS = {
    "int": ({"a": {"w": jnp.zeros(6, int)}}, "params/a/w is int32; make it an array of floats"),
    "unsigned": ({"w": np.zeros(6, np.uint8)}, "params/w is uint8"),
    "bool": ({"w": np.zeros(6, bool)}, "params/w is bool"),
    "complex": ({"w": jnp.zeros(6, complex)}, "params/w is complex64"),
    "key": ({"w": jnp.zeros(6), "k": jax.random.key(0)}, "params/k is key<fry>"),
    "number": ({"w": 0.0}, "params/w is of type float; make it an array"),
    "list": ({"w": [0.0] * 6}, "params/w/0 is of type float"),
    "text": ({"w": "zeros"}, "params/w is of type str"),
    "empty": ({}, r"params=\{\} holds no numbers: there is nothing to train"),
    "none": (None, "params=None holds no numbers"),
    "no rows": ({"w": jnp.zeros((0, 6))}, r"params=\{w: float32\[0, 6\]\} holds no numbers"),
    "nan": ({"w": jnp.zeros(6).at[2].set(jnp.nan)}, "params/w holds 1 values that are not finite"),
    "inf": ({"w": np.full(6, np.inf, "f")}, "params/w holds 6 values that are not finite, of 6"),
    "made int": (lambda: {"w": jnp.zeros(6, int)}, "params/w is int32"),
    "made nan": (lambda: {"w": jnp.full(6, jnp.nan)}, "params/w holds 6 values"),
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_parameters(name, runtime):
    params, text = PARAMS[name]
    with one_line(text):
        run(params, runtime=runtime)


DATA = {
    "list": ([[1.0, 2.0], [3.0, 4.0]], r"data/0/0 is of type float; .*np.asarray"),
    "pair of lists": ((X, Y.tolist()), r"data/1/0 is of type float; .*np.asarray"),
    "generator": ((x for x in X), r"data is of type generator; .*looked up by index"),
    "iterator": (iter(X), "data is of type .*iterator; .*__len__ and gather"),
    "zip": (zip(X, Y, strict=True), "data is of type zip"),
    "text": ("train.csv", "data is of type str"),
    "texts": (np.array(["a", "b"]), "data holds <U1, not numbers; encode text"),
    "ragged": (np.array([[1], [1, 2]], object), "data holds object, not numbers; .*one length"),
    "dates": (np.zeros(3, "M8[D]"), "data holds datetime64"),
    "no dimension": ((X, np.float32(1)), r"data/1 is float32\[\]; give arrays"),
    "no examples": (np.zeros((0, 6)), "at least 1; got {'data': 0}"),
    "nothing": ({}, "at least 1; got {}"),
    "other lengths": ((X, Y[:60]), "same number of examples.*'data/0': 61, 'data/1': 60"),
    "keys": (jax.random.split(jax.random.key(0), 9), r"data is key<fry>\[9\]"),
    "class": (Mine, "data=Mine is a class: call it"),
    "empty class": (Mine(size=0), "data=Mine has 0 examples"),
    "large numbers": (np.arange(61) + 2**40, "data holds int64 from 1099511627776 to .*int32"),
    "no numbers": (lambda: X, "data is of type function"),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name):
    data, text = DATA[name]
    with one_line(text):
        dbjax.Task(P, mean, data)


LATER = {
    "rows": lambda b: (b[0][:-1], b[1]),
    "columns": lambda b: (b[0][:, :5], b[1]),
    "type": lambda b: (b[0].astype(np.float64), b[1]),
    "structure": lambda b: list(b),
    "more": lambda b: (*b, b[1]),
}


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("config", [CONFIG, sandblaster.Config(replicas=1, shards=1, steps=1)])
def test_batches_that_are_another_time_unlike_the_first(name, config):
    with one_line("data: gather of .* examples returned .* was expected .*: batches must be alike"):
        run(data=Mine(LATER[name]), config=dataclasses.replace(config, steps=9))


TASKS = {
    "batch too large": ({"batch_size": 62}, "batch_size=62 is more than all 61 examples"),
    "batch of a part": (
        {"batch_size": 32, "config": one_step(replicas=2)},
        "61 examples cannot be divided among replicas=2: batch_size=32 is more than the 30 that",
    ),
    "batch of a part, synchronous": (
        {"batch_size": 31, "config": sgd.Config(replicas=2, shards=2, steps=1)},
        "batch_size=31 is more than the 30",
    ),
    "more replicas than examples": (
        {"config": one_step(replicas=62)},
        "61 examples cannot be divided among replicas=62",
    ),
    "fraction": ({"batch_size": 8.0}, "Task.batch_size=8.0 must be int"),
    "negative": ({"batch_size": -1}, "Task.batch_size=-1 must be at least 1"),
    "vector": ({"loss": lambda p, b: b[0] @ p["w"]}, r"loss returns float32\[8\]; .*jnp.mean"),
    "one number": ({"loss": lambda p, b: mean(p, b)[None]}, r"loss returns float32\[1\]"),
    "aux": ({"loss": lambda p, b: (mean(p, b), {"n": 1})}, r"loss returns \(float32\[\], \{n: "),
    "dict": ({"loss": lambda p, b: {"loss": mean(p, b)}}, r"loss returns \{loss: float32\[\]\}"),
    "none": ({"loss": lambda p, b: None}, "loss returns None; it must return one scalar"),
    "int": ({"loss": lambda p, b: jnp.sum(p["w"] > 0)}, "loss returns int32"),
    "complex": ({"loss": lambda p, b: mean(p, b) + 0j}, "loss returns complex64"),
    "no parameters": ({"loss": lambda p, b: jnp.mean(b[1])}, "does not depend on the parameters"),
    "constant": ({"loss": lambda p, b: jnp.float32(1.0)}, "does not depend on the parameters"),
    "arity": ({"loss": lambda p: p["w"].sum()}, r"Task.loss takes \(p\)"),
    "no function": ({"loss": None}, "Task.loss=None must be a function"),
    "evaluate": ({"evaluate": {"accuracy": 1.0}}, "Task.evaluate=.* must be a function or None"),
    "no dict": ({"evaluate": lambda p: 0.5}, "evaluate returned 0.5; it must return a dict"),
    "pairs": ({"evaluate": lambda p: [("a", 1)]}, "evaluate returned .*a dict of numbers"),
    "text": ({"evaluate": lambda p: {"a": "good"}}, "evaluate: a='good' must be one real number"),
    "array": ({"evaluate": lambda p: p}, r"evaluate: w=.* must be one real number"),
    "no name": ({"evaluate": lambda p: {1: 2.0}}, "a number called 1; names are strings"),
    "module": ({"config": downpour}, "config is the module .*: give downpour.Config"),
    "config class": ({"config": downpour.Config}, "config is the class Config: call it"),
    "config dict": (
        {"config": {"replicas": 4}},
        "config={'replicas': 4} is not the Config of an algorithm",
    ),
    "no config": (
        {"config": None},
        "config=None is not the Config of an algorithm: give the Config",
    ),
    "local rule": (
        {"config": one_step(local_rule=optim.lbfgs(), n_fetch=2)},
        "cannot run on a shard",
    ),
    "rule that needs the loss": (
        {"config": one_step(rule=optax.lbfgs())},
        "cannot run on a shard",
    ),
    "time as text": ({"until_s": "5"}, "dbjax.run: until_s='5' must be float or None"),
    "seed": ({"seed": 1.5}, "dbjax.run: seed=1.5 must be int"),
    "negative seed": ({"seed": -1}, "seed=-1 must be a whole number from 0"),
    "cluster": ({"cluster": {"compute_s": 1}}, "dbjax.run: cluster=.* must be Cluster or None"),
    "checkpoints": ({"checkpoint_every": 5}, "checkpoint_every=5 must be Every or None"),
    "trace": ({"trace": "trace.json"}, "trace='trace.json' must be Trace or None"),
    "folder": ({"checkpoints": "there"}, "checkpoints='there' must be Checkpoints or None"),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_tasks_and_arguments_of_run(name, runtime):
    given, text = TASKS[name]
    if "cluster" in given and runtime != "virtual":
        pytest.skip("takes none")
    with one_line(text):
        run(runtime=runtime, **given)


FIELDS = {
    "text": (lambda: downpour.Config(replicas="4"), "downpour.replicas='4' must be int"),
    "fraction": (lambda: downpour.Config(replicas=2.0), "downpour.replicas=2.0 must be int"),
    "bool": (lambda: downpour.Config(replicas=True), "downpour.replicas=True must be int"),
    "none": (lambda: downpour.Config(n_push=None), "downpour.n_push=None must be int"),
    "zero": (lambda: downpour.Config(shards=0), "downpour.shards=0 must be at least 1"),
    "half": (lambda: downpour.Config(n_fetch=1.5), "downpour.n_fetch=1.5 must be int"),
    "number": (lambda: downpour.Config(overlap=1), "downpour.overlap=1 must be bool"),
    "nan": (lambda: downpour.Config(warm_start_s=np.nan), "warm_start_s=nan must be at least 0"),
    "inf": (lambda: downpour.Config(warm_start_s=np.inf), "warm_start_s=inf must be finite"),
    "steps": (lambda: sgd.Config(steps="3"), "sgd.steps='3' must be int or None"),
    "rule": (lambda: downpour.Config(optax.sgd), "downpour.rule=<function sgd.* call the function"),
    "schedule": (lambda: sgd.Config(optax.constant_schedule(0.1)), r"sgd.rule=.*optax.sgd\(sched"),
    "rate": (lambda: sgd.Config(0.1), "sgd.rule=0.1 is not an update rule; give an optax transfo"),
    "class of rules": (lambda: sgd.Config(optax.MultiSteps), "sgd.rule=.* is not an update rule"),
    "local": (lambda: downpour.Config(local_rule=optax.adam), "local_rule=.*is not an update rule"),
    "method": (lambda: sandblaster.Config(optim.Lbfgs), "sandblaster.method=.*it is a class: call"),
    "name": (lambda: sandblaster.Config("lbfgs"), "sandblaster.method='lbfgs' must be Method"),
    "stops": (lambda: sandblaster.Config(stops=9), "sandblaster.stops=9 must be Stops"),
    "share": (lambda: sandblaster.Config(sample="all"), "sandblaster.sample='all' must be float"),
    "order": (lambda: sandblaster.Config(order="any"), "order='any' must be one of free, fixed"),
    "after": (lambda: sandblaster.Config(backup_after=-1), "backup_after=-1 must be at least 0"),
    "memory": (lambda: optim.Lbfgs(2.5), "Lbfgs.memory=2.5 must be an integer of at least 1"),
    "damped": (lambda: optim.Lbfgs(damped="no"), "Lbfgs.damped='no' must be True or False"),
    "curvature": (lambda: optim.Lbfgs(curvature=np.nan), "Lbfgs.curvature=nan must be a number"),
    "wolfe": (lambda: optim.Lbfgs(wolfe=optim.Wolfe), "Lbfgs.wolfe=.*such as Wolfe"),
    "first": (lambda: optim.GradientDescent("1"), "GradientDescent.first_step='1' must be a num"),
    "not above": (lambda: optim.ConjugateGradients(0), "first_step=0 must be a number above 0"),
    "norm": (lambda: optim.Stops(-1.0), "Stops.gradient_norm=-1.0 must be a number of at least 0"),
    "iterations": (lambda: optim.Stops(iterations=1.5), "Stops.iterations=1.5 must be an integer"),
    "evaluations": (lambda: optim.Stops(evaluations=0), "Stops.evaluations=0 must be an integer"),
    "trials": (lambda: optim.Wolfe(max_trials=1.5), "Wolfe.max_trials=1.5 must be an integer"),
    "growth": (lambda: optim.Wolfe(largest_growth=1), "largest_growth=1 must be a number above 1"),
    "c1": (lambda: optim.Wolfe(decrease="a"), "Wolfe.decrease='a' must be a number"),
    "speed": (lambda: dbjax.Machine(speed="2"), "Machine.speed='2' must be float"),
    "cards": (lambda: dbjax.Machine(cards=1.5), "Machine.cards=1.5 must be int"),
    "law": (lambda: dbjax.Machine(law="normal"), "Machine.law='normal' must be one of constant"),
    "latency": (lambda: dbjax.Cluster(latency_s="1"), "Cluster.latency_s='1' must be float"),
    "machine": (lambda: dbjax.Cluster(machine={}), "Cluster.machine={} must be Machine"),
    "machines": (lambda: dbjax.Cluster(machines={"a": 2.0}), "machines=.* a dict of Machine"),
    "failures": (lambda: dbjax.Cluster(failures=(3,)), "failures=.* must be a tuple of Failure"),
    "node": (lambda: dbjax.Failure(3, 1.0), "Failure.node=3 must be str"),
    "at": (lambda: dbjax.Outage("a", "b", "0", 1.0), "Outage.at_s='0' must be float"),
    "link": (lambda: dbjax.Link("a", "b", "1ms"), "Link.latency_s='1ms' must be float or None"),
    "every": (lambda: dbjax.Every("5"), "Every.seconds='5' must be float or None"),
    "updates": (lambda: dbjax.Every(updates=2.5), "Every.updates=2.5 must be int or None"),
    "cpus": (lambda: RayOptions(cpus="1"), "ray.cpus='1' must be float"),
    "env": (lambda: RayOptions(env={"A": 1}), "ray.env=.* must be a dict of str"),
    "task seed": (
        lambda: dbjax.Task(P, mean, (X, Y), seed=-5),
        "Task.seed=-5 must be a whole number from 0",
    ),
    "stream": (lambda: Stream(ArrayExamples(X), 2.5), "Stream.batch_size=2.5 must be int"),
    "portions": (
        lambda: Portions(ArrayExamples(X), 0),
        "Portions.portion_size=0 must be at least 1",
    ),
    "frames": (
        lambda: Frames(X, np.zeros(60, np.int32), np.zeros(61, int), np.zeros(61, int)),
        "Frames needs arrays of equal length",
    ),
    "mnist": (
        lambda: Splits("a", ArrayExamples(Labelled(X, np.full(61, 3))), ArrayExamples(X), 3, (6,)),
        "data 'a', split 'train': labels go from 3 to 3, but 3 classes have the labels 0 to 2",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_configs(name):
    make, text = FIELDS[name]
    with one_line(text):
        make()


MINIMISE = {
    "column": (
        lambda: minimised(lambda w: 2 * w[:, None]),
        r"is float64\[3, 1\], but the parameter is",
    ),
    "scalar": (lambda: minimised(lambda w: 1.0), r"is float64\[\], but the parameter is float"),
    "none": (lambda: minimised(lambda w: None), "gradient of value_and_grad is object"),
    "ints": (lambda: minimised(lambda w: w.astype(int)), r"is int64\[3\]; give it floating-point"),
    "complex": (lambda: minimised(lambda w: w + 0j), r"is complex128\[3\]; give it"),
    "ragged": (lambda: minimised(lambda w: [1.0, [2.0]]), "gradient of value_and_grad is of type"),
    "structure": (
        lambda: minimised(lambda w: w["a"], lambda w: 1.0, {"a": np.ones(3)}),
        r"is float64\[3\], but the parameters are \{a: float64\[3\]\}; return a gradient with",
    ),
    "missing": (
        lambda: minimised(lambda w: {"a": w["a"]}, lambda w: 1.0, {"a": np.ones(3), "b": X}),
        "return a gradient with their structure",
    ),
    "one leaf": (
        lambda: minimised(lambda w: {"a": w["a"][:2]}, lambda w: 1.0, {"a": np.ones(3)}),
        r"value_and_grad/a is float64\[2\], but the parameter is float64\[3\]",
    ),
    "losses": (lambda: minimised(loss=lambda w: w), r"loss of value_and_grad is float64\[3\]; it"),
    "no loss": (lambda: minimised(loss=lambda w: None), "it must be one real number"),
    "complex loss": (lambda: minimised(loss=lambda w: 1j), "it must be one real number"),
    "text": (lambda: minimised(loss=lambda w: "1.5"), "it must be one real number"),
    "nothing": (lambda: minimised(params={}), r"params=\{\} holds no numbers"),
    "list": (lambda: minimised(params=[1.0, 2.0]), "params/0 is of type float"),
    "nan": (lambda: minimised(params=np.array([1.0, np.nan])), "params holds 1 values"),
    "only a loss": (
        lambda: optim.minimise(None, np.ones(3), value_and_grad=lambda w: w @ w),
        r"value_and_grad returned float64\[\]; it must return \(loss, gradient\)",
    ),
    "key": (lambda: optim.minimise(mean, {"k": jax.random.key(0)}), "params/k is key<fry>"),
    "unsigned": (lambda: optim.minimise(mean, np.ones(3, np.uint8)), "params is uint8"),
    "int": (lambda: optim.minimise(mean, 3), "params is of type int"),
    "vector": (lambda: optim.minimise(lambda p: p, jnp.ones(3)), r"loss returns float32\[3\]"),
    "aux": (lambda: optim.minimise(lambda p: (p @ p, 1), jnp.ones(3)), "loss returns "),
    "no function": (lambda: optim.minimise(3.0, jnp.ones(3)), "loss=3.0 must be a function"),
    "neither": (lambda: optim.minimise(None, jnp.ones(3)), "loss=None needs value_and_grad"),
    "method": (lambda: minimised(method=optim.Lbfgs), "method=<class .* such as Lbfgs"),
    "stops": (lambda: minimised(stops=100), "stops=100 must be Stops"),
}


@pytest.mark.parametrize("name", MINIMISE)
def test_minimise(name):
    make, text = MINIMISE[name]
    with one_line(text):
        make()


@pytest.mark.parametrize("scale", [1e200, 1e308])
def test_a_gradient_whose_square_overflows_is_said_to(scale):
    w, state = minimised(lambda w: scale * w, lambda w: 1.0)
    assert "the gradient's norm is inf" in state.stop
    assert "scale the loss down" in state.stop
    assert w.tolist() == [1.0] * 3


TAKEN = {
    "list": lambda w: list(2 * w),
    "narrow": lambda w: np.float32(2 * w),
    "jax": lambda w: jnp.asarray(2 * w),
    "fortran": lambda w: np.asfortranarray(2 * w),
    "read-only": lambda w: np.broadcast_to(2 * w, w.shape),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("as_loss", [np.float32, float, lambda loss: np.array([loss])])
def test_gradients_and_losses_that_scipy_takes_are_taken(name, as_loss):
    start = np.ones(3)
    start.flags.writeable = False
    w, _ = minimised(TAKEN[name], lambda w: as_loss(w @ w), start)
    # the gradient's norm is below the usual 1e-5, so w is within half of that
    np.testing.assert_allclose(w, np.zeros(3), atol=5e-6)
    assert w.dtype == np.float64


LABELS = {
    "no label": (np.array([0, 1, -1]), "labels go from -1 to 1, .*-1 stands for no label"),
    "from 1": (np.array([1, 2, 3]), "labels go from 1 to 3, .*they count from 1: subtract 1"),
    "too large": (np.array([0, 1, 7]), "labels go from 0 to 7, but 3 classes have"),
    "wrapped": (np.array([0, 255], np.uint8), "labels go from 0 to 255"),
    "floats": (np.array([0.0, 1.0]), r"labels are float64\[2\]; they must be integers"),
    "one-hot": (np.eye(3, dtype=int), r"labels are int64\[3, 3\]"),
    "column": (np.array([[0], [1]]), r"labels are int64\[2, 1\]"),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("model", ["softmax", "mlp", "speech"])
def test_labels_of_a_network(name, model):
    labels, text = LABELS[name]
    with one_line(text):
        classified(labels, model)


def test_labels_that_a_users_own_class_gathers():
    class Later(Mine):
        def gather(self, indices):
            return Labelled(X[indices], np.where(indices > 50, -1, 0))

    network = build("softmax", inputs=6, classes=3, seed=0)
    with one_line("labels go from -1 to"):
        run(network.params, network.loss, Later(), one_step(steps=9))


def test_labels_of_a_regression_have_its_shape():
    network = build("linear", inputs=6, classes=1, seed=0)
    with one_line(r"labels of shape \[61\] must be \[examples, 1\]"):
        dbjax.Task(network.params, network.loss, (X, Y))
    with one_line(r"labels of shape \(61,\) must have the shape of the outputs, \(61, 1\)"):
        network.loss(network.params, (X, Y))  # where nobody has looked at the data


def image(dtype, value=0, shape=(2, 2, 1), label=0):
    return {"image": np.full(shape, value, dtype), "label": label}


SETS = {
    "ragged": ([image("u1"), image("u1", shape=(3, 2, 1))], {}, "has 2 shapes, .*give side"),
    "channels": (
        [image("u1"), image("u1", shape=(3, 2, 3))], {"side": 2}, "number of channels; leave"),
    "vectors": ([image("f", shape=(4,))], {"side": 2}, r"such as \(4,\): side=2 needs images"),
    "text": ([image("u1") | {"image": b"good"}], {}, r"feature 'image' holds \|S4: only sets"),
    "tokens": ([image("u1") | {"image": [[1], [2, 3]]}], {}, "feature 'image' holds object"),
    "types": ([image("u1"), image("u2")], {}, "feature 'image' holds .* of one type"),
    "several": ([image("u1", label=np.array([0, 1]))], {}, r"labels of shape \(2,\): only sets"),
    "named": ([image("u1", label="cat")], {}, "labels of type <U3: they must be integers"),
    "no image": ([{"label": 1}], {}, "an example has no 'image', only label"),
    "no label": ([{"image": 1}], {}, "an example has no 'label', only image"),
    "wide": ([image("u1", label=2**32)], {}, "labels from 4294967296 to .* class number"),
    "unlabelled": ([image("u1", label=-1)], {}, "split 'train': labels go from -1 to -1"),
    "from 1": ([image("u1", label=i) for i in (1, 2, 3)], {}, "they count from 1"),
    "empty": ([], {}, "split 'train' has no examples"),
    "no pair": ([image("u1")], {"keys": None}, "it has no .input, label. pair"),
    "three": ([image("u1")], {"keys": ("a", "b", "c")}, "it has no .input, label. pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_image_sets(name, monkeypatch):
    examples, options, text = SETS[name]
    with one_line(text):
        read(monkeypatch, examples, **options)


@pytest.mark.parametrize("side", [None, 1])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "i8"])
def test_integer_images_of_any_width_are_divided_by_the_largest_of_their_type(
    dtype, side, monkeypatch
):
    largest = np.iinfo(dtype).max
    examples = [image(dtype, value) for value in (0, largest // 2, largest)]
    inputs = read(monkeypatch, examples, side=side).train.tree.inputs
    assert inputs.dtype == np.float32
    # one unit in the last place of an i1 is 1 / 127: half of 127 is 63
    np.testing.assert_allclose(inputs[:, 0], [0, (largest // 2) / largest, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_float_images_stay_as_they_are(dtype, monkeypatch):
    inputs = read(monkeypatch, [image(dtype, 2.5), image(dtype, -3)]).train.tree.inputs
    assert inputs[:, 0].tolist() == [2.5, -3.0]
    assert inputs.dtype == np.float32


def test_a_users_metrics_do_not_take_our_names(monkeypatch):
    calls = []

    def evaluate(params):
        calls.append(1)
        return {"accuracy": 0.5, "updates": -1.0, "node": 7.0}

    monkeypatch.setattr(downpour, "program", lambda *_: pytest.fail("it was placed"))
    with one_line("evaluate returns 'node', 'updates', which dbjax records itself: .*'my_node'"):
        run(evaluate=evaluate)
    assert calls == [1]


def test_metrics_that_come_later_are_looked_at_too(caplog):
    """They do not cost the run."""
    calls = []

    def evaluate(params):
        calls.append(1)
        return {"accuracy": 0.5} if len(calls) < 3 else {"time_s": 0.0}

    run(evaluate=evaluate, config=one_step(steps=5), evaluate_every_s=1.0)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("skipped the evaluation at 1 s: ValueError: Task.evaluate returns")


def test_metrics_may_be_any_real_numbers():
    metrics = {"float": 0.5, "int": np.int64(3), "jax": jnp.float32(2.5), "bool": np.bool_(True),
               "one": np.array([4.0]), "bad": float("nan")}  # fmt: skip
    summary = run(evaluate=lambda p: metrics).summary
    found = [summary[name] for name in metrics]
    assert found[:5] == [0.5, 3.0, 2.5, 1.0, 4.0]
    assert np.isnan(found[5])
    assert {type(value) for value in found} == {float}


def test_a_function_that_changes_its_argument_in_place_changes_no_parameters():
    def value_and_grad(w):
        value, gradient = float(((w - 3) ** 2).sum()), 2 * (w - 3)
        w += 1
        return value, gradient

    found, _ = optim.minimise(None, np.zeros(3), value_and_grad=value_and_grad)
    np.testing.assert_allclose(found, 3.0)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_rule_that_changes_a_shape_is_refused(shards):
    outer = optax.stateless(lambda g, _: jax.tree.map(lambda x: jnp.outer(x, x), g))
    grows = optax.GradientTransformation(
        lambda _: jnp.zeros(1), lambda g, s, _=None: (g, jnp.concatenate([s, s]))
    )
    parameters = r"stateless changes \['w'\] of the parameters from \[6\] to \[6, 6\]; use"
    # Plain jax broadcasts across ranks, which these tests forbid.
    with jax.numpy_rank_promotion("allow"), one_line(parameters):
        run(config=one_step(rule=outer, shards=shards))
    with one_line(r"changes .* of the state from \[1\] to \[2\]; use a rule that keeps"):
        run(config=one_step(rule=grows, shards=shards))


def test_a_rule_whose_functions_are_no_keys_is_a_rule():
    @dataclasses.dataclass
    class Update:
        rate: float

        def __call__(self, gradient, state, params=None):
            return jax.tree.map(lambda g: -self.rate * g, gradient), state

    rule = optax.GradientTransformation(lambda _: (), Update(0.01))
    found = run(config=one_step(rule=rule, steps=3)).params
    expected = run(config=one_step(rule=optax.sgd(0.01), steps=3)).params
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)  # one rounding a step


@pytest.mark.parametrize("task", [None, {}, P, dbjax.Task], ids=["None", "dict", "params", "class"])
def test_what_is_no_task_is_refused(task):
    with one_line("task=.* is not a Task: "):
        dbjax.run(task, CONFIG)
    with one_line("task=.* is not a Task: "):
        dbjax.replay(task, CONFIG, None)
    with one_line("script=None is not a Script"):
        dbjax.replay(dbjax.Task(P, mean, (X, Y)), CONFIG, None)


@pytest.mark.parametrize("dtype", [">f4", np.longdouble, ">i8"])
def test_types_of_numpy_that_jax_lacks_are_refused(dtype):
    with one_line("data/0 holds '.*', which jax does not support: .* convert it with"):
        run(data=(X.astype(dtype), Y))
    if np.dtype(dtype).kind == "f":
        with one_line("^params/w holds '.*', which jax does not support"):
            run(params={"w": np.zeros(6, dtype)})


def test_a_key_that_is_the_name_of_a_part_of_another_leaf_is_refused():
    params = {"w": jnp.zeros(6), "w[0:3]": jnp.zeros(3)}
    with one_line(
        r"params/w\[0:3\] is also the name of a part of another leaf; give it another key"
    ):
        run(params, lambda p, b: mean(p, b) + p["w[0:3]"].sum(), config=one_step(shards=3))


def test_an_evaluation_that_fails_in_the_middle_does_not_cost_the_run(caplog, tmp_path):
    calls = []

    def evaluate(params):
        calls.append(1)
        if len(calls) in (3, 4):
            raise ValueError("Input contains NaN")
        return {"accuracy": 0.5}

    with Checkpoints(tmp_path) as checkpoints:
        result = run(
            evaluate=evaluate, config=one_step(steps=5), evaluate_every_s=1.0,
            checkpoints=checkpoints,
        )  # fmt: skip
        assert checkpoints.latest() is not None
    assert [("accuracy" in row) for row in result.evaluations[:4]] == [True, False, False, True]
    assert [row["updates"] for row in result.evaluations[:4]] == [0, 0, 1, 2]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"skipped the evaluation at {s} s: ValueError: Input contains NaN" for s in (1, 2)
    ]


def test_an_accuracy_that_a_guess_is_held_against_is_a_share():
    guess = MostFrequent(0.4, 61, "accuracy")
    task = dbjax.Task(P, mean, (X, Y), 8, lambda _: {"accuracy": 65.6}, most_frequent=guess)
    with one_line("accuracy=65.6, but Task.most_frequent needs a share from 0 to 1: divide it"):
        dbjax.run(task, CONFIG)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.eye(3, dtype=int), "every row is a single 1 among zeros.*argmax"),
        ([], r"labels are float64\[0\]; give class numbers"),
        (np.ones(3), r"labels are float64\[3\]; give class numbers"),
    ],
)
def test_labels_of_a_guess(labels, text):
    with one_line(text):
        MostFrequent.of(labels)
    assert MostFrequent.of([[0, 3], [0, 5]]).share == 0.5  # a label for each of two positions
    assert MostFrequent.of([True, False, True]).share == 2 / 3
    with one_line("MostFrequent.examples='3' must be int"):
        MostFrequent(0.5, "3")


@pytest.mark.parametrize("wrap", [jax.jit, functools.partial, jax.checkpoint])
def test_a_loss_that_is_wrapped_still_looks_at_labels(wrap):
    model = build("mlp", inputs=6, classes=3, widths=(4,), seed=0)
    labels = np.arange(61) % 3 - 1
    with one_line("labels.*-1"):
        dbjax.Task(model.params, wrap(model.loss), (X, labels))


@pytest.mark.parametrize("name", ["mlp", "vision"])
def test_a_label_that_is_no_class_makes_the_loss_nan(name):
    """Where nobody knows which array holds labels, as in a function of the user's own."""
    logits = jnp.zeros((4, 3))
    loss = {"mlp": functional.cross_entropy, "vision": functional.one_against_all}[name]
    assert np.isfinite(loss(logits, jnp.array([0, 1, 2, 0])))
    for label in (-1, 3):
        value, gradient = jax.value_and_grad(loss)(logits, jnp.array([0, 1, 2, label]))
        assert np.isnan(value)
        assert np.isnan(gradient).all()
    for dtype, classes in (("uint8", 256), ("uint8", 1000), ("int8", 128)):
        assert np.isfinite(loss(jnp.zeros((2, classes)), jnp.array([0, 120], dtype)))
