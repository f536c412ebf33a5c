"""Runs whose replicas are cut over 4 or 8 of 8 devices beside whole ones; prints differences.

A process of its own: the number of devices is settled when the backend starts.
"""

import dataclasses
import json
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.models import build
from dbjax.optim import Lbfgs
from dbjax.parameter_server import gradient_fn
from dbjax.parameter_server.gradient_fn import PartitionedGradientFn
from dbjax.parameter_server.partition import partition_params
from tests.model_parallel.padded import apart
from tests.parameter_server.linear_task import linear_cut, linear_task

SHARDS = (1, 2, 3, 4, 8)
LINEAR = ((2, 2), (2, 3), (4, 2))  # rows of devices, replicas: 8 devices are enough for the first


def network_task():
    random = np.random.default_rng(0)
    model = build("mlp", inputs=6, classes=5, seed=0, widths=(7,))
    x, y = random.normal(size=(96, 6)).astype(np.float32), random.integers(5, size=96)
    params = jax.tree.map(lambda p: p + 0.1 * random.normal(size=p.shape), model.params)
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    task = dbjax.Task(params, model.loss, (x, y.astype(np.int32)), batch_size=8)
    return task, model.sharding(4, None)


def keyed_task_and_cut(each_its_own=False):
    """Dropout of 8 units, of which each of 4 devices has 2: it draws for all and takes its own."""
    random = np.random.default_rng(0)
    data = random.normal(size=(96, 6)).astype(np.float32)
    weights = random.normal(size=(6, 8)).astype(np.float32)

    def saved_progress(key):
        return jax.random.bernoulli(key, 0.5, (8, 8))

    def loss(params, batch, key):
        return jnp.mean(saved_progress(key) * jnp.tanh(batch @ params["w"]))

    def block_loss(params, batch, key):
        device = jax.lax.axis_index("a")
        if each_its_own:
            key = jax.random.fold_in(key, device)
        mine = jax.lax.dynamic_slice_in_dim(saved_progress(key), 2 * device, 2, 1)
        return jax.lax.pmean(jnp.mean(mine * jnp.tanh(batch @ params["w"])), "a")

    task = dbjax.Task({"w": weights}, loss, data, batch_size=8, takes_key=True)
    return task, ModelSharding((("a", 4),), (("w", P(None, "a")),), block_loss)


def ends_apart(task, sharding, config, runtime):
    """How far the parameters are from those of the whole network, trained."""
    ends = [
        dbjax.run(dataclasses.replace(task, sharding=each), config, runtime=runtime).params
        for each in (sharding, None)
    ]
    return apart(*ends)


def moved(task, sharding, shards=3):
    """What one call of a gradient sends to devices, and from them; and what it finds."""
    params, batch = task.params, task.examples.gather(np.arange(8))
    partition = partition_params(params, shards, Layout(sharding, params))
    gradient = PartitionedGradientFn(sharding, params, partition, jax.devices())
    slices, puts = jax.jit(partition.split)(params), []

    def put(values, target, device_put=jax.device_put):
        if isinstance(values, dict) and values.keys() != batch_names:
            puts.append((target, {name: value.nbytes for name, value in values.items()}))
        return device_put(values, target)

    batch_names = batch.keys() if isinstance(batch, dict) else None
    with mock.patch.object(gradient_fn.jax, "device_put", put):
        _, pushed = gradient(slices, batch)
    return {
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "to_devices": [names for to, names in puts if isinstance(to, jax.Device)],
        "from_devices": [names for to, names in puts if not isinstance(to, jax.Device)],
        "holds": [sorted(piece.name for piece in pieces) for pieces in gradient.held],
        "pieces": sorted(piece.name for of_shard in partition.shards for piece in of_shard),
        "fetched": jax.tree.all(jax.tree.map(is_padded, gradient.fetched(slices), params)),
        "gradient": apart(partition.join(pushed), jax.jit(jax.grad(task.loss))(params, batch)),
    }


def is_padded(array, like):
    rest = [(0, b - a) for a, b in zip(like.shape, array.shape, strict=True)]
    padded = np.pad(like, rest) if rest else like
    return array.dtype == like.dtype and bool(np.array_equal(array, padded))


def all_moved(task, sharding):
    """Of the network, of what several devices hold, and where one of 4 devices holds nothing."""
    linear = linear_task()
    half = dataclasses.replace(linear, params=jax.tree.map(jnp.bfloat16, linear.params))
    few = build("softmax", inputs=4, classes=3, seed=0)
    images = np.ones((8, 4), np.float32), np.arange(8) % 3
    return {
        "network": moved(task, sharding),
        "linear": moved(linear, linear_cut(2)),
        "bfloat16": moved(half, linear_cut(2)),
        "few": moved(dbjax.Task(few.params, few.loss, images), few.sharding(4, None)),
    }


def compile_in_threads(task, sharding):
    """Names of the threads that compile something while two replicas train."""
    names = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(threading.current_thread().name)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    config = downpour.Config(optax.sgd(0.125), replicas=2, shards=3, steps=3)
    dbjax.run(dataclasses.replace(task, sharding=sharding), config, runtime="threads")
    jax.monitoring.unregister_event_duration_listener(listen)
    return sorted(set(names))


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    rule = optax.sgd(0.125)
    found = {}
    task, sharding = network_task()
    config = downpour.Config(rule, replicas=2, steps=20)
    for shards in SHARDS:
        config = dataclasses.replace(config, shards=shards)
        found[f"downpour, {shards} shards"] = ends_apart(task, sharding, config, "virtual")
    doubled = dataclasses.replace(sharding, loss=lambda *args: 2 * sharding.loss(*args))
    found["another loss"] = ends_apart(task, doubled, config, "virtual")
    for runtime in ("virtual", "threads"):
        config = sgd.Config(rule, replicas=2, shards=2, steps=20)
        found[f"synchronous, {runtime}"] = ends_apart(task, sharding, config, runtime)
        for rows, replicas in LINEAR:
            config = downpour.Config(rule, replicas=replicas, shards=3, steps=20)
            name = f"linear, {replicas} of {2 * rows}, {runtime}"
            found[name] = ends_apart(linear_task(), linear_cut(rows), config, runtime)
        for order in ("free", "fixed"):
            method = sandblaster.Config(Lbfgs(), replicas=2, shards=2, steps=4, order=order)
            name = f"sandblaster, {order}, {runtime}"
            found[name] = ends_apart(task, sharding, method, runtime)
    config = downpour.Config(rule, replicas=2, shards=2, steps=10)
    found["keyed"] = ends_apart(*keyed_task_and_cut(), config, "virtual")
    found["keys of their own"] = ends_apart(*keyed_task_and_cut(True), config, "virtual")
    config = downpour.Config(rule, replicas=1, shards=2, steps=20)
    found["downpour, threads"] = ends_apart(task, sharding, config, "threads")
    slow = dbjax.Cluster(compute_s=0.0, machine=dbjax.Machine(bandwidth_bytes_per_s=100.0))
    config = downpour.Config(rule, replicas=1, shards=4, steps=3)
    whole_s, cut_s = (
        dbjax.run(dataclasses.replace(task, sharding=each), config, cluster=slow).summary["time_s"]
        for each in (None, sharding)
    )
    found["times as fast over four cards"] = whole_s / cut_s
    backwards = jax.devices()[::-1]
    found["kept order"] = list(sharding.mesh(backwards).devices.flat) == backwards[:4]
    found["compile"] = compile_in_threads(task, sharding)
    print(json.dumps(found | {"moved": all_moved(task, sharding)}))


if __name__ == "__main__":
    main()
