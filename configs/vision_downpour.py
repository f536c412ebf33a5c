"""Downpour SGD + Adagrad: 2 replicas of a small vision network, each in 2x2 tiles (section 3).

python -m experiments.run --config=configs/vision_downpour.py --workdir=runs/vision_downpour

The network has three stages of locally connected filters without shared weights, as in section 5;
the data are scikit-learn's digits scaled to 16x16 pixels. Any image set of TFDS works as well:
`--config.data.name=cifar10 --config.data.side=32 --config.model.channels=3
--config.model.patch=5 --config.model.last_pool=5`.
"""

import ml_collections

from configs._partitioned import partitioned

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = partitioned(devices=4)
    config.data = ml_collections.ConfigDict({"name": "digits", "side": 16})
    config.model = ml_collections.ConfigDict(
        {"name": "vision", "units": 8, "channels": 1, "patch": 3, "last_pool": 5}
    )
    config.sharding.how = "tiles"
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.02, "initial_accumulator": 0.01}
    )
    config.until_s = 1.0 if variant == "smoke" else 30.0
    config.evaluations = 4 if variant == "smoke" else 20
    return config
