"""Replicas that span processes: each is two processes of Ray, with two devices in each."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, easgd, sandblaster, sgd
from dbjax.models import build
from dbjax.runtime.ray import RayOptions
from tests.model_parallel.padded import apart
from tests.parameter_server.linear_task import linear_cut, linear_task

pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.usefixtures("cluster"),
]
TWO_DEVICES = RayOptions(env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})


def network():
    """A small network's task, and its sharding over 2 processes with 2 devices each."""
    random = np.random.default_rng(1)
    data = (random.normal(size=(64, 6)).astype("float32"), random.integers(5, size=64))
    model = build("mlp", inputs=6, classes=5, seed=0, widths=(7,))
    task = dbjax.Task(model.params, model.loss, data, batch_size=8)
    return task, dataclasses.replace(model.sharding(4, None), processes=2)


def test_two_replicas_of_two_processes_equal_the_whole():
    """The second replica waits for all updates of the first, so the order is always the same."""
    task, sharding = network()
    config = downpour.Config(
        optax.sgd(0.2, momentum=0.9),
        replicas=2,
        shards=2,
        steps=12,
        n_fetch=3,
        n_push=2,
        warm_start_updates=6,
    )
    cut = dataclasses.replace(task, sharding=sharding)
    spanning = dbjax.run(cut, config, runtime="ray", ray=TWO_DEVICES)
    whole = dbjax.run(task, config)
    # Sums of products are in another order over 4 devices; these are 12 steps in float32.
    assert apart(spanning.params, whole.params) < 1e-5
    assert apart(task.params, whole.params) > 0.1
    losses = {row["node"] for row in spanning.trace.rows if "loss" in row}
    assert losses == {"replica/0", "replica/1"}
    for count in ("updates", "examples", "bytes_pushed"):
        assert spanning.summary[count] == whole.summary[count]


def test_the_death_of_one_process_is_a_death_of_the_replica():
    """Gradients of a linear loss do not depend on when they are computed, and are exact here."""
    task, steps = linear_task(), 300

    async def kill(node, machines):
        while not any(row.get("step", 0) > 20 for row in machines._trace.rows):
            await node.sleep(0.1)
        machines.kill("replica/0/1")

    sharding = dataclasses.replace(linear_cut(2), processes=2)
    config = downpour.Config(optax.sgd(0.125), replicas=1, shards=2, steps=steps)
    cut = dataclasses.replace(task, sharding=sharding)
    spanning = dbjax.run(cut, config, runtime="ray", ray=TWO_DEVICES, background=kill)
    events = [(row["node"], row["event"]) for row in spanning.trace.rows if "event" in row]
    assert events == [("replica/0", "died"), ("replica/0", "returned")]
    assert spanning.summary["updates"] == steps
    assert spanning.summary["lost_pushes"] == 0
    whole = dbjax.run(task, config)
    for name, value in spanning.params.items():
        np.testing.assert_array_equal(value, whole.params[name])


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_runtimes_of_one_process_are_refused(runtime):
    task, sharding = network()
    config = downpour.Config(optax.sgd(0.2), replicas=1, shards=2, steps=2)
    with pytest.raises(ValueError, match=f"several processes needs runtime='ray', not '{runtime}'"):
        dbjax.run(dataclasses.replace(task, sharding=sharding), config, runtime=runtime)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (sgd.Config(replicas=2, shards=2, steps=2), "processes=2 is for methods whose replicas"),
        (sandblaster.Config(shards=2, steps=2), "processes=2 is for methods whose replicas"),
        (downpour.Config(shards=3, steps=2), "shards=3 must be a multiple of processes=2"),
        (
            easgd.Config(optax.clip_by_global_norm(1.0), shards=2, steps=2),
            "clip_by_global_norm",
        ),
    ],
)
def test_what_cannot_span_processes_is_refused(config, said):
    task, sharding = network()
    task = dataclasses.replace(task, sharding=sharding, batch_size=2)
    with pytest.raises(ValueError, match=said):
        dbjax.run(task, config, runtime="ray")


def test_a_loss_that_each_process_traces_otherwise_is_refused():
    task, sharding = network()

    def loss(params, batch):
        return sharding.loss(params, batch) + 1e-9 * jax.process_index()

    cut = dataclasses.replace(task, sharding=dataclasses.replace(sharding, loss=loss))
    config = downpour.Config(optax.sgd(0.2), replicas=1, shards=2, steps=2)
    with pytest.raises(ValueError, match="another program in each process of a replica"):
        dbjax.run(cut, config, runtime="ray", ray=TWO_DEVICES)


def test_too_few_devices_in_a_process_are_refused():
    task, sharding = network()
    config = downpour.Config(optax.sgd(0.2), replicas=1, shards=2, steps=2)
    with pytest.raises(ValueError, match="process 0 has 1; on CPUs set jax_num_cpu_devices"):
        dbjax.run(dataclasses.replace(task, sharding=sharding), config, runtime="ray")
