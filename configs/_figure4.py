"""What Figures 4 and 5 share: a small network's arithmetic on the clock of the paper's 42 M one.

A replica is cut over 8 machines of the cluster that Figure 3 fits, where that network is
fastest. A mini-batch takes as long, and as many bytes travel, as that network needs; gradients are
those of a smaller one. The paper does not say how wide its parameter server is: here it has as many
machines as the replicas have, which four shards stand for, each with a network card for every
replica.
"""

import json
from pathlib import Path

import ml_collections

from dbjax.models import PAPER, SpeechConfig
from dbjax.runtime.presets import GOOGLE_2012, GPU_2012
from experiments.defaults import defaults

SIZES = {  # frames, states, width, virtual seconds, evaluations
    "smoke": (20_000, 32, 32, 15.0, 10),
    "laptop": (300_000, 128, 256, 120.0, 40),
    "full": (1_200_000, 512, 1024, 1_200.0, 80),
}
VARIANTS = tuple(SIZES)
DEFAULT = "laptop"
TUNED = Path(__file__).with_name("figure4") / "tuned.json"
# What each method may spend on tuning. Runs are compared when warm starts are over.
SAMPLER, PRUNER, PRUNE_FROM, TRIALS = "tpe", "halving", 0.3, 16
BATCH = 100  # as in Figure 3; the paper does not give it
MACHINES = 8  # of a replica
SHARDS = 4  # each network card stands for those of two machines
MEMORY_BANDWIDTH = 5e9  # bytes per second at which a shard's machine reads gradients: assumed
# Of the paper's network: what its compiled programs cost, as `dbjax.parallel.speedup` reads them
# (tests/experiments/test_figure4.py); linear in the examples, for mini-batches of 25 to 500.
MESSAGES_S, EXAMPLE_S = 0.0417, 1.133e-3
GPU_STEP_S = 0.0312  # whole, on `GPU_2012`, for mini-batches of 100


def step_s(examples: int) -> float:
    """Of one mini-batch or portion on a replica of 8 machines."""
    return MESSAGES_S + EXAMPLE_S * examples


def figure4(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """Data, network and cluster; `laptop` if no variant is given.

    Args:
      variant: of `SIZES`.
      replicas: whose number says how wide the parameter server is.
    """
    frames, states, width, until_s, evaluations = SIZES[variant or DEFAULT]
    config = defaults()
    config.until_s, config.evaluations = until_s, evaluations
    config.data = ml_collections.ConfigDict(
        {"name": "speech_frames", "num_states": states, "num_frames": frames}
    )
    config.model = ml_collections.ConfigDict({"name": "speech", "width": width, "depth": 4})
    config.batch_size = BATCH
    config.max_spans = 10_000
    config.checkpoint.keep = 0
    machine = GOOGLE_2012.machine
    config.cluster.update(
        compute_s=step_s(BATCH),
        latency_s=GOOGLE_2012.latency_s,
        service_s=1e-4,  # assumed
        size_scale=PAPER.parameters / SpeechConfig(width=width, states=states).parameters,
    )
    config.cluster.machine.update(
        law=machine.law,
        sigma=machine.sigma,
        bandwidth_bytes_per_s=machine.bandwidth_bytes_per_s * MACHINES / SHARDS,
        cards=SHARDS,
    )
    with_replicas(config, replicas)
    return config


def with_replicas(config: ml_collections.ConfigDict, replicas: int) -> None:
    """So many, and a parameter server of as many machines."""
    config.cluster.memory_bandwidth_bytes_per_s = MEMORY_BANDWIDTH * MACHINES * replicas / SHARDS
    shard = {
        "bandwidth_bytes_per_s": config.cluster.machine.bandwidth_bytes_per_s,
        "cards": replicas,
    }
    with config.unlocked():
        config.cluster.machines = ml_collections.ConfigDict({"shard/*": shard})
        config.options.replicas = replicas


def downpour(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """Downpour with four shards, whose rule is left to say."""
    config = figure4(variant, replicas)
    config.options.update(shards=SHARDS, warm_start_updates=0, overlap=False)
    return config


def own_parameters(config: ml_collections.ConfigDict) -> None:
    """One replica whose parameters lie on its own machines: nothing travels."""
    config.algorithm = "sgd"
    config.cluster.memory_bandwidth_bytes_per_s = MEMORY_BANDWIDTH * MACHINES
    with config.unlocked():
        config.cluster.machines = ml_collections.ConfigDict()


def on_a_gpu(config: ml_collections.ConfigDict) -> None:
    """One replica on one board of 2012."""
    config.cluster.compute_s = GPU_STEP_S
    config.cluster.memory_bandwidth_bytes_per_s = GPU_2012.memory_bandwidth_bytes_per_s
    config.cluster.machine.sigma = GPU_2012.sigma


def tuned(
    config: ml_collections.ConfigDict, method: str, variant: str
) -> ml_collections.ConfigDict:
    """With what `experiments.figure4 --tune` has found for that size, else for `laptop`."""
    if TUNED.is_file():
        sizes = json.loads(TUNED.read_text())
        found = sizes.get(variant or DEFAULT, sizes.get(DEFAULT, {})).get(method)
        if found is not None:
            config.update_from_flattened_dict(found["fields"])
    return config
