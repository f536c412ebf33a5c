"""What can be compiled before the clock starts is."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax import optim
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.costs import speedup
from dbjax.parameter_server import ParameterServer, Shard, server_rule
from dbjax.parameter_server.partition import compiled_split
from dbjax.runtime import ThreadsRuntime
from tests.runtime.services import Slow

COMPILED = "/jax/core/compile/backend_compile_duration"
METHODS = {
    "downpour": downpour.Config(rule=optax.sgd(0.01), replicas=2, shards=2, steps=3),
    "sgd": sgd.Config(rule=optax.adagrad(0.01), steps=3),
    "synchronous": sgd.Config(rule=optax.sgd(0.01), replicas=2, shards=2, steps=3),
    "sandblaster": sandblaster.Config(optim.Lbfgs(), replicas=2, shards=2, steps=2),
}


async def when(node, slow):
    assert slow.compiled == 1
    return node.now()


def test_arguments_are_compiled_once_and_the_clock_does_not_notice():
    runtime, slow = ThreadsRuntime(), Slow()
    runtime.serve("service", lambda node, slow: object(), slow)
    times = [runtime.spawn(f"main/{i}", when, slow) for i in range(2)]
    assert runtime.run() < 1
    assert max(time.result() for time in times) < 1


def test_a_stop_meanwhile_ends_the_run():
    runtime, slow = ThreadsRuntime(), Slow()
    slow.compile_ahead = runtime.stop
    ended = runtime.spawn("main", when, slow)
    runtime.run()
    assert not ended.done()


@pytest.fixture
def compiled():
    """Names of the threads that have compiled something."""
    names = []

    def listen(event, duration, **_):
        if event == COMPILED:
            names.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def squares():
    x = np.random.default_rng(0).normal(size=(60, 17)).astype(np.float32)

    def loss(params, batch):
        return jnp.mean((batch @ params["w"]) ** 2) + params["b"] ** 2

    return dbjax.Task({"w": jnp.ones(17), "b": jnp.float32(1)}, loss, data=x, batch_size=5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_replicas_compile_nothing_where_they_fetch_and_push_each_step(method, compiled):
    dbjax.run(squares(), method, runtime="threads")
    assert "MainThread" in compiled
    assert [name for name in compiled if name.startswith("replica/")] == []


def test_what_has_travelled_is_compiled_where_it_is(compiled):
    pytest.importorskip("ray", reason="dbjax[ray] is not installed")
    from dbjax.runtime.ray.messages import decode, encode

    task = squares()
    server = ParameterServer.serve(
        ThreadsRuntime(), Shard, task.params, 2, server_rule(optax.sgd(0.1))
    )
    gradient = decode(encode(server.gradients_of(task.loss, task.batch, 1)[0]))
    gradient.compile_ahead()
    slices = compiled_split(server.partition)(task.params)
    batch = task.batches(0, 1).at(0)
    before = len(compiled)
    loss, _ = gradient(slices, batch)
    assert len(compiled) == before
    assert float(loss) == pytest.approx(float(task.loss(task.params, batch)), rel=1e-6)


def test_what_a_gradient_costs_is_looked_up_once_for_all_replicas(monkeypatch):
    looked = []

    def costs_of(program, found=speedup.costs_of):
        looked.append(program)
        return found(program)

    monkeypatch.setattr(speedup, "costs_of", costs_of)
    method = downpour.Config(rule=optax.sgd(0.01), replicas=5, shards=2, steps=2)
    machine = dbjax.Machine(flops_per_s=1e9)
    dbjax.run(squares(), method, cluster=dbjax.Cluster(compute_s="costs", machine=machine))
    assert len(looked) == 1
