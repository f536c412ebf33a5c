"""Search space of Downpour SGD on speech frames: learning rate, warm start, fetch interval.

python -m experiments.sweep --config=configs/speech_downpour.py \
    --space=configs/spaces/speech_downpour.py --workdir=runs/sweeps/speech_downpour --jobs=2
"""

from experiments.sweep.space import choice, log_uniform, uniform

SPACE = {
    "rule.learning_rate": log_uniform(0.005, 0.5),
    "options.warm_start_s": uniform(0.0, 16.0),
    "options.n_fetch": choice(1, 2, 5),
}
SAMPLER, PRUNER, TRIALS = "tpe", "median", 40
