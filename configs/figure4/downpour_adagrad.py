"""Downpour SGD + Adagrad [20] (Figure 4).

python -m experiments.run --config=configs/figure4/downpour_adagrad.py --workdir=runs/figure4
"""

import ml_collections

from configs._figure4 import SHARDS, figure4, tuned
from configs._figure4 import VARIANTS as VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = adagrad(variant, 4 if variant == "smoke" else 20)
    return tuned(config, "downpour_adagrad", variant)


def adagrad(variant: str, replicas: int) -> ml_collections.ConfigDict:
    config = figure4(variant, replicas)
    config.options = ml_collections.ConfigDict(
        {"replicas": replicas, "shards": SHARDS, "warm_start_s": 0.0, "overlap": False}
    )
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.01, "initial_accumulator": 1e-6, "epsilon": 0.0}
    )
    return config
