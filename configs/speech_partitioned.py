"""Downpour SGD + Adagrad: 2 replicas of the speech network, each on 4 machines (section 3).

python -m experiments.run --config=configs/speech_partitioned.py --workdir=runs/speech_partitioned

Each replica's network is sharded over 4 of 8 CPU devices. The virtual clock counts the costs of the
compiled programs on the cluster of 2012 that Figure 3 fits. `--config.sharding.how=alternating`
shards every other layer by its inputs; `--config.runtime=threads` runs in real time.
"""

import ml_collections

from configs._partitioned import partitioned

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = partitioned(devices=4)
    config.data = ml_collections.ConfigDict(
        {"name": "speech_frames", "num_states": 128, "num_frames": 300_000}
    )
    config.model = ml_collections.ConfigDict({"name": "speech", "width": 512, "depth": 4})
    config.sharding.how = "units"
    config.batch_size = 100
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.01, "initial_accumulator": 1e-6}
    )
    config.until_s, config.evaluations = 80.0, 20
    if variant == "smoke":
        config.data.update(num_frames=20_000, num_states=64)
        config.model.update(width=64, depth=2)
        config.rule.gamma = 0.03
        config.until_s, config.evaluations = 1.0, 4
    return config
