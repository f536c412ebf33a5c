"""Downpour SGD [20 replicas, 10 shards] with a fixed rate on speech frames (as in Figure 4).

python -m experiments.run --config=configs/speech_downpour.py --workdir=runs/speech_downpour

Trains a small version of the paper's speech network; `configs/figure4` reproduces the figure.
"""

import ml_collections

from configs._speech import VARIANTS as VARIANTS
from configs._speech import speech


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = speech(variant)
    config.options = ml_collections.ConfigDict(
        {
            "replicas": 20,
            "shards": 10,
            "n_fetch": 1,
            "n_push": 1,
            "overlap": False,
            "warm_start_s": 8.0,
        }
    )
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.07})
    if variant == "smoke":
        config.options.update(replicas=4, shards=2, warm_start_s=0.5)
        config.rule.learning_rate = 0.5
    return config
