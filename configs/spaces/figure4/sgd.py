"""Search space of Figure 4's SGD on one replica, and on one GPU: the learning rate.

python -m experiments.sweep --config=configs/figure4/sgd.py \
    --space=configs/spaces/figure4/sgd.py --workdir=runs/sweeps/figure4/sgd --jobs=2
"""

from configs._figure4 import PRUNE_FROM as PRUNE_FROM
from configs._figure4 import PRUNER as PRUNER
from configs._figure4 import SAMPLER as SAMPLER
from configs._figure4 import TRIALS as TRIALS
from experiments.sweep.space import log_uniform

SPACE = {
    "rule.learning_rate": log_uniform(0.05, 5.0),
}
