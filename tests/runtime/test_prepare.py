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
    assert slow.prepared == 1
    return node.now()


def test_arguments_are_prepared_once_and_the_clock_does_not_notice():
    runtime, slow = ThreadsRuntime(), Slow()
    runtime.serve("service", lambda node, slow: object(), slow)
    times = [runtime.spawn(f"main/{i}", when, slow) for i in range(2)]
    assert runtime.run() < 1
    assert max(time.result() for time in times) < 1


def test_a_stop_meanwhile_ends_the_run():
    runtime, slow = ThreadsRuntime(), Slow()
    slow.prepare = runtime.stop
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


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_replicas_compile_no_gradient_and_no_rule(method, compiled):
    x = np.random.default_rng(0).normal(size=(60, 17)).astype(np.float32)

    def loss(params, batch):
        return jnp.mean((batch @ params["w"]) ** 2) + params["b"] ** 2

    task = dbjax.Task({"w": jnp.ones(17), "b": jnp.float32(1)}, loss, data=x, batch_size=5)
    dbjax.run(task, method, runtime="threads")
    assert "MainThread" in compiled
    assert [name for name in compiled if name.startswith("replica/")] == []
