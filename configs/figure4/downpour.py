"""Downpour SGD [20] with a fixed rate (Figure 4).

python -m experiments.run --config=configs/figure4/downpour.py --workdir=runs/figure4
"""

import ml_collections

from configs._figure4 import SHARDS, figure4, tuned
from configs._figure4 import VARIANTS as VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    replicas = 4 if variant == "smoke" else 20
    config = figure4(variant, replicas)
    config.options = ml_collections.ConfigDict(
        {"replicas": replicas, "shards": SHARDS, "warm_start_s": 0.0, "overlap": False}
    )
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.1})
    return tuned(config, "downpour", variant)
