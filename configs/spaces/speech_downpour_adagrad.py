"""Search space of Downpour SGD + Adagrad on speech frames.

python -m experiments.sweep --config=configs/speech_downpour_adagrad.py \
    --space=configs/spaces/speech_downpour_adagrad.py --workdir=runs/sweeps/speech_adagrad --jobs=2

It varies the learning rate, the initial value of the accumulator, the warm start, and the fetch
interval.
"""

from experiments.sweep.space import choice, log_uniform, uniform

SPACE = {
    "rule.gamma": log_uniform(1e-3, 1e-1),
    "rule.initial_accumulator": log_uniform(1e-8, 1e-2),
    "options.warm_start_s": uniform(0.0, 16.0),
    "options.n_fetch": choice(1, 2, 5),
}
SAMPLER, PRUNER, TRIALS = "tpe", "median", 40
