"""Sandblaster L-BFGS with 2,000 replicas (Figure 4).

python -m experiments.run --config=configs/figure4/sandblaster.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs._figure4 import DEFAULT, SHARDS, SIZES, figure4, step_s, tuned
from configs._figure4 import VARIANTS as VARIANTS

# Examples in a portion. The 270,000 of size laptop make up to three portions for each replica.
PORTION = 50


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    replicas = 40 if variant == "smoke" else 2_000
    config = figure4(variant, replicas)
    config.algorithm = "sandblaster"
    config.batch_size = PORTION
    config.cluster.compute_s = step_s(PORTION)
    config.options.update(shards=SHARDS, send_every=4, prefetch=1, sample=1.0)
    config.rule = ml_collections.ConfigDict({"name": "lbfgs", "memory": 10})
    config = tuned(config, "sandblaster", variant)
    pairs = SIZES[variant or DEFAULT].pairs
    if pairs is not None:
        config.rule.memory = min(config.rule.memory, pairs)
    return config
