"""SGD [1]: one replica, the parameters on its own machines (Figure 4).

python -m experiments.run --config=configs/figure4/sgd.py --workdir=runs/figure4
"""

import ml_collections

from configs._figure4 import VARIANTS as VARIANTS
from configs._figure4 import figure4, own_parameters, tuned


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return tuned(untuned(variant), "sgd", variant)


def untuned(variant: str) -> ml_collections.ConfigDict:
    config = figure4(variant, replicas=1)
    own_parameters(config)
    config.rule = ml_collections.ConfigDict({"name": "sgd", "learning_rate": 0.7})
    return config
