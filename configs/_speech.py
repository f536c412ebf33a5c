"""The base of the speech configs: the paper's network, scaled down, on a modelled cluster."""

import ml_collections

from experiments.defaults import defaults

VARIANTS = ("smoke",)


def speech(variant: str) -> ml_collections.ConfigDict:
    """The data, network and cluster of a config; `smoke` is smaller and shorter."""
    config = defaults()
    config.data = ml_collections.ConfigDict(
        {"name": "speech_frames", "num_states": 128, "num_frames": 300_000}
    )
    config.model = ml_collections.ConfigDict({"name": "speech", "width": 256, "depth": 4})
    config.batch_size = 64
    config.until_s = 80.0
    config.evaluations = 40
    config.cluster.update(
        compute_s=0.1, latency_s=5e-4, service_s=1e-4, memory_bandwidth_bytes_per_s=5e9
    )
    config.cluster.machine.update(law="lognormal", sigma=0.2, bandwidth_bytes_per_s=125e6)
    if variant == "smoke":
        # With 64 states, most phones share one state. One hidden layer learns within seconds.
        config.data.update(num_frames=20_000, num_states=64)
        config.model.update(width=64, depth=1)
        config.until_s, config.evaluations = 6.0, 4
    return config
