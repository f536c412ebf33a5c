"""Downpour SGD with 20 replicas and a fixed learning rate (Figure 4).

python -m experiments.run --config=configs/figure4/downpour.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs import _figure4
from configs._figure4 import VARIANTS as VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = _figure4.downpour(variant, 4 if variant == "smoke" else 20)
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.1})
    return _figure4.tuned(config, "downpour", variant)
