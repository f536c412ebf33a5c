"""Search space of Downpour SGD + Adagrad on scikit-learn's digits; 40 trials take minutes.

python -m experiments.sweep --config=configs/digits_downpour.py \
    --space=configs/spaces/digits_downpour.py --workdir=runs/sweeps/digits_downpour --jobs=2
"""

from experiments.sweep.space import choice, integers, log_uniform

SPACE = {
    "rule.gamma": log_uniform(1e-3, 1.0),
    "rule.initial_accumulator": log_uniform(1e-6, 1.0),
    "options.warm_start_updates": integers(0, 100, step=10),
    "options.n_fetch": choice(1, 2, 5),
}
SAMPLER, PRUNER, TRIALS = "tpe", "median", 40
