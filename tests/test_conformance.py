"""Every method of dbjax.algorithms, in virtual time and in threads."""

import dataclasses
import importlib
import os
import pkgutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
import dbjax.algorithms

METHODS = [
    module
    for info in pkgutil.iter_modules(dbjax.algorithms.__path__, "dbjax.algorithms.")
    if hasattr(module := importlib.import_module(info.name), "program")
]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.split(".")[-1])

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(256, 12)).astype(np.float32)
Y = (X @ RANDOM.normal(size=12).astype(np.float32)).astype(np.float32)


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] - y) ** 2)


def evaluate(params):
    return {"full_loss": loss(params, (X, Y))}


TASK = dbjax.Task({"w": jnp.zeros(12)}, loss, (X, Y), batch_size=16, evaluate=evaluate)
CLUSTER = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, service_s=1e-4,
    machine=dbjax.Machine(law="lognormal", sigma=0.3, bandwidth_bytes_per_s=1e5))  # fmt: skip


ALWAYS = {"rule": optax.sgd(0.03), "steps": 60, "order": "fixed"}  # where a method has such


def config(method, **kwargs):
    fields = {field.name for field in dataclasses.fields(method.Config)}
    given = {name: value for name, value in ALWAYS.items() if name in fields}
    return dataclasses.replace(method.Config(), **given | kwargs)


@methods
@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_decreases_the_loss(method, runtime, replicas):
    cfg = config(method, replicas=replicas, shards=1)
    result = dbjax.run(TASK, cfg, runtime=runtime)
    assert result.summary["full_loss"] < 0.2 * float(loss(TASK.params, (X, Y)))
    assert result.summary["clock"] == ("virtual" if runtime == "virtual" else "wall")


@methods
def test_one_replica_is_the_same_on_every_runtime(method):
    def digest(**kwargs):
        result = dbjax.run(TASK, config(method, replicas=1, shards=1), **kwargs)
        return result.summary["params_sha256"]

    assert digest() == digest(runtime="threads") == digest(cluster=CLUSTER)
    other = dataclasses.replace(TASK, seed=1)
    third = dbjax.run(other, config(method, replicas=1, shards=1))
    assert third.summary["params_sha256"] != digest()


@methods
def test_virtual_runs_repeat_and_evaluation_changes_nothing(method):
    def run(every_s=None, cluster=CLUSTER):
        trace = dbjax.Trace(max_spans=100_000)
        cfg = config(method, replicas=3, shards=2)
        result = dbjax.run(TASK, cfg, cluster=cluster, evaluate_every_s=every_s, trace=trace)
        steps = [(r["time_s"], r["node"], r["step"], float(r["loss"]))
                 for r in trace.rows if "loss" in r]  # fmt: skip
        return result.summary["params_sha256"], trace.spans, steps

    assert run() == run()
    assert run() == run(every_s=0.37)
    assert run() != run(cluster=dataclasses.replace(CLUSTER, seed=1))


def main():
    for method in METHODS:
        result = dbjax.run(TASK, config(method, replicas=3, shards=2), cluster=CLUSTER)
        print(result.summary["params_sha256"], result.summary["time_s"])


def test_two_processes_leave_the_same_bytes():
    said = {
        subprocess.run(
            [sys.executable, "-m", "tests.test_conformance"], check=True, capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert len(said.pop().splitlines()) == len(METHODS)


@methods
def test_a_run_that_cannot_end_is_refused(method):
    with pytest.raises(ValueError, match="until_s"):
        dbjax.run(TASK, config(method, steps=None))


def test_bad_arguments_of_run_are_refused():
    cfg = config(METHODS[0])
    for kwargs, text in (
        ({"runtime": "thread"}, "neither 'virtual' nor 'threads' nor 'ray'"),
        ({"runtime": "threads", "cluster": CLUSTER}, "takes no cluster"),
        ({"until_s": 0.0}, "until_s=0.0"),
        ({"evaluate_every_s": -1.0}, "evaluate_every_s"),
    ):
        with pytest.raises(ValueError, match=text):
            dbjax.run(TASK, cfg, **kwargs)


if __name__ == "__main__":
    main()
