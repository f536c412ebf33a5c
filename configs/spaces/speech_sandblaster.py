"""Search space of Sandblaster L-BFGS on speech frames: memory, first step, samples, backup tasks.

python -m experiments.sweep --config=configs/speech_sandblaster.py \
    --space=configs/spaces/speech_sandblaster.py --workdir=runs/sweeps/speech_sandblaster --jobs=2
"""

from experiments.sweep.space import choice, log_integers, log_uniform

SPACE = {
    "rule.memory": log_integers(3, 30),
    "rule.first_step": log_uniform(0.1, 10.0),
    "options.sample": choice(0.1, 0.25, 0.5, 1.0),
    "options.backup_after": choice(1.0, 1.5, 3.0),
}
SAMPLER, PRUNER, TRIALS = "tpe", "median", 40
