"""Downpour SGD + Adagrad with 20 replicas (Figure 4).

python -m experiments.run --config=configs/figure4/downpour_adagrad.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs import _figure4
from configs._figure4 import VARIANTS as VARIANTS


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = adagrad(variant, 4 if variant == "smoke" else 20)
    return _figure4.tuned(config, "downpour_adagrad", variant)


def adagrad(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """Downpour SGD + Adagrad before tuning."""
    config = _figure4.downpour(variant, replicas)
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.01, "initial_accumulator": 1e-6, "epsilon": 0.0}
    )
    return config
