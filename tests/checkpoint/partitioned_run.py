"""Virtual runs of replicas cut over 4 of 8 devices, stopped and gone on with; prints JSON.

A process of its own: the number of devices is settled when the backend starts.
"""

import json
import tempfile

import jax
import optax

import dbjax
from dbjax.algorithms import downpour
from dbjax.checkpoint import Checkpoints
from tests.parameter_server.gradient_fn_runs import network_task


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    task, sharding = network_task()
    task = dbjax.Task(task.params, task.loss, task.data, batch_size=8, sharding=sharding)
    config = downpour.Config(optax.adagrad(0.1), replicas=2, shards=3, overlap=True)
    cluster = dbjax.Cluster(compute_s=0.1, latency_s=0.01, machine=dbjax.Machine(law="exponential"))

    def run(until_s, **kwargs):
        summary = dbjax.run(task, config, cluster=cluster, until_s=until_s, **kwargs).summary
        return {name: summary[name] for name in ("updates", "params_sha256", "staleness_updates")}

    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
        half = run(1.5, checkpoints=checkpoints)
        again = run(3.0, resume=checkpoints.latest())
    print(json.dumps({"half": half, "again": again, "whole": run(3.0)}))


if __name__ == "__main__":
    main()
