"""A space whose trials compile nothing new, and differ from each other."""

from experiments.sweep.space import choice, integers, uniform

SPACE = {
    "cluster.machine.sigma": uniform(0.0, 0.9, points=5),
    "options.n_fetch": choice(1, 4),
    "seed": integers(0, 3),
}
TRIALS = 40
