"""A small convex problem, by Sandblaster on any cluster and by one process."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import dbjax
from dbjax.algorithms import sandblaster
from dbjax.optim import Stops, minimise

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(192, 9))
LABELS = (X @ RANDOM.normal(size=9) + RANDOM.normal(size=192) > 0).astype(np.int32)
NEVER = Stops(0.0, -1.0)


def loss(params, batch):
    """l2-regularised logistic regression; mean over the batch."""
    x, labels = batch
    logits = x @ params["w"] + params["b"]
    data = jnp.mean(jnp.logaddexp(0, logits) - labels * logits)
    return data + 0.05 * (jnp.sum(params["w"] ** 2) + params["b"] ** 2)


def task(batch_size=4):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    params = {"b": jnp.zeros((), dtype), "w": jnp.zeros(9, dtype)}
    return dbjax.Task(params, loss, (X.astype(dtype), LABELS), batch_size)


def run(cluster=None, runtime="virtual", until_s=None, batch_size=4, trace=None, **kwargs):
    given = {"replicas": 4, "shards": 2, "steps": 8, "stops": NEVER, "backup_after": 1.0}
    config = sandblaster.Config(**given | kwargs)
    return dbjax.run(
        task(batch_size), config, runtime=runtime, cluster=cluster, until_s=until_s, trace=trace
    )


def one_process(batch_size=4, steps=8, method=None):
    """The same method on one pytree; gradients summed over portions, in order."""
    given = task(batch_size)
    data = given.portions

    @jax.jit
    def portion(params, batch, weight):
        return jax.value_and_grad(lambda p: weight * loss(p, batch))(params)

    def value_and_grad(params):
        total = data.size_of(range(data.count))
        sums = [portion(params, data.gather((i,)), data.size_of((i,)) / total)
                for i in range(data.count)]  # fmt: skip
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)

    stops = dataclasses.replace(NEVER, iterations=steps)
    return minimise(None, given.params, method, stops, value_and_grad=value_and_grad)[0]


def difference(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


UNEVEN = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, service_s=1e-4, seed=3,
    machine=dbjax.Machine(law="exponential", bandwidth_bytes_per_s=1e6),
    machines={"replica/1": dbjax.Machine(speed=1 / 50)})  # fmt: skip
DYING = dataclasses.replace(
    UNEVEN,
    machines={"replica/*": dbjax.Machine(
        law="exponential", mean_time_between_failures_s=1.5, mean_time_to_repair_s=0.5)},
)  # fmt: skip
CLUSTERS = {"even": None, "uneven": UNEVEN, "dying": DYING}
