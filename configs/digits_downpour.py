"""Downpour SGD + Adagrad [8 replicas, 4 shards] on scikit-learn's digits; takes ten seconds.

python -m experiments.run --config=configs/digits_downpour.py --workdir=runs/digits

Trains a network with one hidden layer of 64 units on 1,438 real images of 8x8 pixels.
"""

import ml_collections

from experiments.defaults import defaults

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = defaults()
    config.data = ml_collections.ConfigDict({"name": "digits"})
    config.model = ml_collections.ConfigDict({"name": "mlp", "widths": (64,)})
    config.options = ml_collections.ConfigDict(
        {
            "replicas": 8,
            "shards": 4,
            "n_fetch": 1,
            "n_push": 1,
            "overlap": False,
            "warm_start_updates": 20,
        }
    )
    config.rule = ml_collections.ConfigDict(
        {"name": "downpour_adagrad", "gamma": 0.05, "initial_accumulator": 0.1}
    )
    config.until_s = 5.0 if variant == "smoke" else 40.0
    config.cluster.update(latency_s=1e-3, service_s=1e-4)
    config.cluster.machine.update(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=125e6)
    return config
