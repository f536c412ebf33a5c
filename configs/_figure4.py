"""What Figures 4 and 5 share: a small network's arithmetic on the clock of the paper's 42 M one.

A replica is cut over 8 machines of the cluster that Figure 3 fits, where that network is
fastest. A mini-batch takes as long, and as many bytes travel, as that network needs; gradients are
those of a smaller one. The paper does not say how wide its parameter server is: here it has as many
machines as the replicas, which the ten shards stand for.
"""

import json
from pathlib import Path

import ml_collections

from dbjax.models import PAPER, SpeechConfig
from dbjax.runtime.presets import GOOGLE_2012, GPU_2012
from experiments.defaults import defaults

SIZES = {  # frames, states, width, virtual seconds, evaluations
    "smoke": (20_000, 32, 32, 15.0, 10),
    "laptop": (300_000, 128, 256, 160.0, 40),
    "full": (1_200_000, 512, 1024, 1_600.0, 80),
}
VARIANTS = tuple(SIZES)
DEFAULT = "laptop"
TUNED = Path(__file__).with_name("figure4") / "tuned.json"
BATCH = 100
SHARDS = 10
MACHINES = 8  # of a replica
MEMORY_BANDWIDTH = 5e9  # bytes per second at which a shard's machine reads gradients: assumed
# Of the paper's network on such a replica: what `dbjax.parallel.speedup` says of its compiled
# programs for mini-batches of 25 to 500 (tests/experiments/test_figure4.py).
MESSAGES_S, EXAMPLE_S = 0.0417, 1.133e-3
GPU_STEP_S = 0.0312  # the whole network on `GPU_2012`, mini-batches of 100


def step_s(examples: int) -> float:
    """Of one mini-batch or portion on a replica of 8 machines."""
    return MESSAGES_S + EXAMPLE_S * examples


def figure4(size: str, replicas: int = 1, machines: int = MACHINES) -> ml_collections.ConfigDict:
    """Data, network and cluster; `laptop` if no size is given.

    Args:
      size: of `SIZES`.
      replicas: whose number says how wide the parameter server is.
      machines: of a replica; what they take for a mini-batch is left to the caller if not 8.
    """
    frames, states, width, config = *SIZES[size or DEFAULT][:3], defaults()
    config.until_s, config.evaluations = SIZES[size or DEFAULT][3:]
    config.data = ml_collections.ConfigDict(
        {"name": "speech_frames", "num_states": states, "num_frames": frames}
    )
    config.model = ml_collections.ConfigDict({"name": "speech", "width": width, "depth": 4})
    config.batch_size = BATCH
    config.checkpoint.keep = 0
    clock(config, replicas, SpeechConfig(width=width, states=states).parameters, machines)
    return config


def clock(config: ml_collections.ConfigDict, replicas: int, arithmetic: int, machines: int) -> None:
    """The cluster of the paper's network, for one with `arithmetic` parameters."""
    machine, servers = GOOGLE_2012.machine, machines * replicas / SHARDS  # of one shard
    config.cluster.update(
        compute_s=step_s(config.batch_size),
        latency_s=GOOGLE_2012.latency_s,
        service_s=1e-4,  # assumed
        memory_bandwidth_bytes_per_s=MEMORY_BANDWIDTH * servers,
        size_scale=PAPER.parameters / arithmetic,
    )
    card = machine.bandwidth_bytes_per_s
    config.cluster.machine.update(
        law=machine.law, sigma=machine.sigma, bandwidth_bytes_per_s=card * machines
    )
    with config.unlocked():
        config.cluster.machines = ml_collections.ConfigDict(
            {"shard/*": {"bandwidth_bytes_per_s": card * max(1.0, servers)}}
        )


def tuned(config: ml_collections.ConfigDict, method: str, size: str) -> ml_collections.ConfigDict:
    """With what `experiments.figure4 --tune` has found for that size, if it has."""
    if TUNED.is_file():
        found = json.loads(TUNED.read_text()).get(size or DEFAULT, {}).get(method)
        if found is not None:
            config.update_from_flattened_dict(found["fields"])
    return config


def gpu(config: ml_collections.ConfigDict) -> None:
    """One replica on one board; nothing travels."""
    config.cluster.compute_s = GPU_STEP_S
    config.cluster.machine.sigma = GPU_2012.sigma
