"""Sandblaster L-BFGS [200 replicas, 10 shards] on speech frames (as in Figure 4).

python -m experiments.run --config=configs/speech_sandblaster.py --workdir=runs/speech_sandblaster

Trains a small version of the paper's speech network; `configs/figure4` reproduces the figure.
"""

import ml_collections

from configs._speech import VARIANTS as VARIANTS
from configs._speech import speech

_PORTION = 128  # examples in a portion, which makes about ten portions for each replica


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = speech(variant)
    config.algorithm = "sandblaster"
    config.cluster.compute_s *= _PORTION / config.batch_size
    config.batch_size = _PORTION
    config.options = ml_collections.ConfigDict(
        {"replicas": 200, "shards": 10, "send_every": 4, "prefetch": 1, "backup_after": 1.5}
    )
    config.rule = ml_collections.ConfigDict({"name": "lbfgs", "memory": 10})
    if variant == "smoke":
        config.options.update(replicas=16, shards=2)
        config.rule.memory = 5  # each further pair is one more program to compile
        config.until_s = 20.0
    return config
