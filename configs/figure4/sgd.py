"""SGD with one replica that holds the parameters on its own 8 machines (Figure 4).

python -m experiments.run --config=configs/figure4/sgd.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs._figure4 import VARIANTS as VARIANTS
from configs._figure4 import figure4, own_parameters, tuned


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return tuned(untuned(variant), "sgd", variant)


def untuned(variant: str) -> ml_collections.ConfigDict:
    """SGD before tuning."""
    config = figure4(variant, replicas=1)
    own_parameters(config)
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.7})
    return config
