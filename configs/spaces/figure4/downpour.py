"""Search space of Figure 4's Downpour: learning rate, warm start, fetches during computation.

python -m experiments.sweep --config=configs/figure4/downpour.py \
    --space=configs/spaces/figure4/downpour.py --workdir=runs/sweeps/figure4/downpour --jobs=2
"""

from configs._figure4 import PRUNE_FROM as PRUNE_FROM
from configs._figure4 import PRUNER as PRUNER
from configs._figure4 import SAMPLER as SAMPLER
from configs._figure4 import TRIALS as TRIALS
from experiments.sweep.space import choice, integers, log_uniform

SPACE = {
    "rule.learning_rate": log_uniform(0.005, 1.0),
    "options.warm_start_updates": integers(0, 40, step=10),
    "options.overlap": choice(False, True),
}
