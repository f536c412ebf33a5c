"""Search space of Figure 4's Downpour + Adagrad, for 20 and for 200 replicas.

python -m experiments.sweep --config=configs/figure4/downpour_adagrad.py \
    --space=configs/spaces/figure4/downpour_adagrad.py --workdir=runs/sweeps/adagrad --jobs=2

It varies the learning rate, the initial value of the accumulator, the warm start, and whether
fetches overlap with computation.
"""

from configs._figure4 import PRUNE_FROM as PRUNE_FROM
from configs._figure4 import PRUNER as PRUNER
from configs._figure4 import SAMPLER as SAMPLER
from configs._figure4 import TRIALS as TRIALS
from experiments.sweep.space import choice, integers, log_uniform

SPACE = {
    "rule.gamma": log_uniform(1e-3, 1e-1),
    "rule.initial_accumulator": log_uniform(1e-8, 1e-2),
    "options.warm_start_updates": integers(0, 40, step=10),
    "options.overlap": choice(False, True),
}
