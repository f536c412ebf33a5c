"""SGD on one GPU of 2012, which is faster than a replica on 8 machines (Figure 4).

python -m experiments.run --config=configs/figure4/gpu.py --workdir=runs/figure4

Trains the speech network of `configs/_figure4.py`; `tuned.json` has its tuned fields.
"""

import ml_collections

from configs._figure4 import VARIANTS as VARIANTS
from configs._figure4 import on_a_gpu, tuned
from configs.figure4.sgd import untuned


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = untuned(variant)
    on_a_gpu(config)
    return tuned(config, "gpu", variant)
