"""The base of the configs with model parallelism: the cluster of 2012, on eight CPU devices."""

import dataclasses

import ml_collections

from dbjax.runtime.presets import GOOGLE_2012
from experiments.defaults import defaults


def partitioned(devices: int) -> ml_collections.ConfigDict:
    """Two replicas, each sharded over `devices` machines, and four shards.

    The virtual clock counts the costs of the compiled programs on the cluster that Figure 3 fits.
    """
    config = defaults()
    config.sharding.update(devices=devices, host_devices=8)
    config.options = ml_collections.ConfigDict({"replicas": 2, "shards": 4})
    for field in ("latency_s", "message_s"):
        config.cluster[field] = getattr(GOOGLE_2012, field)
    config.cluster.machine.update(dataclasses.asdict(GOOGLE_2012.machine))
    with config.ignore_type():
        config.cluster.compute_s = "costs"
    config.cluster.update(service_s=1e-4)
    return config
