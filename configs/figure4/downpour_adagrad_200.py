"""Downpour SGD + Adagrad with 200 replicas and a warm start (Figure 4).

python -m experiments.run --config=configs/figure4/downpour_adagrad_200.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs._figure4 import VARIANTS as VARIANTS
from configs._figure4 import tuned
from configs.figure4.downpour_adagrad import adagrad


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = adagrad(variant, 12 if variant == "smoke" else 200)
    config.options.warm_start_updates = 20
    return tuned(config, "downpour_adagrad_200", variant)
