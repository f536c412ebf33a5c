"""What the configs of replicas cut over machines share: the cluster of 2012, eight CPU devices."""

import dataclasses

import ml_collections

from dbjax.runtime.presets import GOOGLE_2012
from experiments.defaults import defaults


def partitioned(devices: int) -> ml_collections.ConfigDict:
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
