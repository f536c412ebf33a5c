"""SGD with one replica on speech frames: the baseline (as in Figure 4).

python -m experiments.run --config=configs/speech_sgd.py --workdir=runs/speech_sgd

Trains a small version of the paper's speech network; `configs/figure4` reproduces the figure.
"""

import ml_collections

from configs._speech import VARIANTS as VARIANTS
from configs._speech import speech


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = speech(variant)
    config.algorithm = "sgd"
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 1.0})
    return config
