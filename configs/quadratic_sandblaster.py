"""Sandblaster L-BFGS on an ill-conditioned quadratic; one of 8 replicas is 50 times slower.

python -m experiments.run --config=configs/quadratic_sandblaster.py --workdir=runs/quadratic

The loss is that of a linear regression with condition number 1,000. The run stops when the gradient
is small enough.
"""

import ml_collections

from experiments.defaults import defaults

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = defaults()
    config.algorithm = "sandblaster"
    config.data = ml_collections.ConfigDict({"name": "quadratic", "condition": 1e3})
    config.model = ml_collections.ConfigDict({"name": "linear"})
    config.batch_size = 100
    config.options = ml_collections.ConfigDict(
        {
            "replicas": 8,
            "shards": 4,
            "order": "fixed",
            "stops": {"gradient_norm": 1e-4, "relative_decrease": 0.0},
        }
    )
    config.rule = ml_collections.ConfigDict({"name": "lbfgs", "memory": 10})
    config.cluster.update(compute_s=0.05, latency_s=1e-3, service_s=1e-4)
    config.cluster.machine.update(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=125e6)
    config.cluster.machines = ml_collections.ConfigDict({"replica/3": {"speed": 0.02}})
    config.until_s = 90.0
    if variant == "smoke":
        config.data.update(num_examples=2_000, num_features=20)
        config.until_s = 5.0
    return config
