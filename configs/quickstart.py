"""Downpour SGD on a synthetic data set; takes a few seconds and downloads nothing.

python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from experiments.defaults import defaults

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = defaults()
    config.options = ml_collections.ConfigDict({"replicas": 8, "shards": 3})
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.05})
    config.until_s = 3.0 if variant == "smoke" else 20.0
    config.cluster.machine.update(law="lognormal", sigma=0.3)
    return config
