"""Search space of Figure 4's Sandblaster L-BFGS: memory, first step, sub-sampled batches.

python -m experiments.sweep --config=configs/figure4/sandblaster.py \
    --space=configs/spaces/figure4/sandblaster.py --workdir=runs/sweeps/figure4/sandblaster --jobs=2
"""

from configs._figure4 import PRUNE_FROM as PRUNE_FROM
from configs._figure4 import PRUNER as PRUNER
from configs._figure4 import SAMPLER as SAMPLER
from configs._figure4 import TRIALS as TRIALS
from experiments.sweep.space import choice, log_integers, log_uniform

SPACE = {
    "rule.memory": log_integers(3, 100),
    "rule.first_step": log_uniform(0.1, 10.0),
    "options.sample": choice(0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
}
