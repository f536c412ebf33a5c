"""Downpour SGD + Adagrad [20 replicas, 10 shards], warm started, on speech frames (as in Figure 4).

python -m experiments.run --config=configs/speech_downpour_adagrad.py --workdir=runs/adagrad

Trains a small version of the paper's speech network; `configs/figure4` reproduces the figure.
"""

import ml_collections

from configs import speech_downpour
from configs._speech import VARIANTS as VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = speech_downpour.get_config(variant)
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.01, "initial_accumulator": 1e-6, "epsilon": 0.0}
    )
    if variant == "smoke":
        config.rule.gamma = 0.03
    else:
        config.options.warm_start_s = 4.0
    return config
