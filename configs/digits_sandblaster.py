"""Sandblaster L-BFGS [8 replicas, 4 shards] on scikit-learn's digits: convex softmax regression.

python -m experiments.run --config=configs/digits_sandblaster.py --workdir=runs/sandblaster

The loss is l2-regularised and therefore has a single minimum. The run stops when the gradient is
small enough or the loss hardly decreases.
"""

import ml_collections

from experiments.defaults import defaults

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = defaults()
    config.algorithm = "sandblaster"
    config.data = ml_collections.ConfigDict({"name": "digits"})
    config.model = ml_collections.ConfigDict({"name": "softmax", "l2": 1e-3})
    config.batch_size = 16  # examples in a portion
    config.options = ml_collections.ConfigDict(
        {
            "replicas": 8,
            "shards": 4,
            "send_every": 4,
            "backup_after": 1.5,
            "stops": {"gradient_norm": 1e-3, "relative_decrease": 1e-6},
        }
    )
    config.rule = ml_collections.ConfigDict({"name": "lbfgs", "memory": 10})
    config.until_s = 5.0 if variant == "smoke" else 60.0
    config.cluster.update(compute_s=0.05, latency_s=1e-3, service_s=1e-4)
    config.cluster.machine.update(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=125e6)
    return config
