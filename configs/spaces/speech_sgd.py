"""Search space of single-replica SGD on speech frames: the learning rate.

python -m experiments.sweep --config=configs/speech_sgd.py \
    --space=configs/spaces/speech_sgd.py --workdir=runs/sweeps/speech_sgd --jobs=2
"""

from experiments.sweep.space import log_uniform

SPACE = {
    "rule.learning_rate": log_uniform(0.05, 5.0),
}
SAMPLER, PRUNER, TRIALS = "random", "median", 20
