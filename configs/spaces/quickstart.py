"""Search space of Downpour SGD on the synthetic data set; 40 trials take a minute.

python -m experiments.sweep --config=configs/quickstart.py \
    --space=configs/spaces/quickstart.py --workdir=runs/sweep --jobs=2
"""

from experiments.sweep.space import choice, log_uniform

SPACE = {
    "rule.learning_rate": log_uniform(1e-3, 3.0),
    "options.n_fetch": choice(1, 2, 5),
    "options.n_push": choice(1, 2, 5),
}
SAMPLER, TRIALS = "random", 40
