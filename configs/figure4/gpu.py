"""GPU [1]: SGD on one board of 2012, faster than a replica on 8 machines (Figure 4).

python -m experiments.run --config=configs/figure4/gpu.py --workdir=runs/figure4
"""

import ml_collections

from configs._figure4 import VARIANTS as VARIANTS
from configs._figure4 import on_a_gpu, tuned
from configs.figure4.sgd import untuned


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = untuned(variant)
    on_a_gpu(config)
    return tuned(config, "gpu", variant)
