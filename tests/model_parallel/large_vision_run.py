"""Costs of the network of 1.7 billion parameters, whole and on 81 devices; printed as JSON."""

import dataclasses
import json

import jax

from dbjax.models import VisionConfig
from experiments.figure3.networks import compiled

BATCH = 10

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 81)
    config = VisionConfig()
    whole, sharding = (compiled(config, machines, BATCH) for machines in (1, 81))
    print(
        json.dumps(
            {
                "whole_flops": whole.flops,
                "cut_flops": sharding.flops,
                "collectives": [dataclasses.asdict(c) for c in sharding.collectives],
                "unknown": sharding.unknown,
            }
        )
    )
