"""What Figures 4 and 5 share: a small network's arithmetic on the clock of the paper's 42 M one.

A replica is cut over 8 machines of the cluster that Figure 3 fits, where that network is
fastest. A mini-batch takes as long, and as many bytes travel, as that network needs; gradients are
those of a smaller one. The paper does not say how wide its parameter server is: ours is as wide as
makes a fetch by all replicas quickest, and has at most as many machines as they have. Four shards
stand for them.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import ml_collections

from dbjax.files import read_json
from dbjax.models import PAPER, SpeechConfig
from dbjax.runtime.presets import GOOGLE_2012, GPU_2012
from experiments.defaults import defaults
from experiments.fields import assign


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed, and what is assumed that the paper does not give.

    Attributes:
      frames: of speech, a tenth of them held out.
      states: classes.
      width: of the hidden layers.
      until_s: virtual time of each run.
      evaluations: of each run.
      batch: examples whose gradient is computed for a mini-batch; the clock is that of 100, what
        Figure 3 is fitted with.
      network: how many times faster than cards of 1 Gb/s and their messages it is; gradients are
        read from a server's memory as much faster.
      depth: hidden layers.
      pairs: that L-BFGS keeps at most, whatever was tuned; None: as many as were tuned.
    """

    frames: int
    states: int
    width: int
    until_s: float
    evaluations: int
    batch: int = 100
    network: float = 1.0
    depth: int = 4
    pairs: int | None = None


_LAPTOP = Size(300_000, 128, 128, 200.0, 100)
SIZES = {
    # One hidden layer learns within seconds, and each pair would be one more program to compile.
    "smoke": Size(20_000, 64, 64, 30.0, 20, depth=1, pairs=5),
    "laptop": _LAPTOP,
    "full": Size(1_200_000, 512, 512, 4_000.0, 400),
    "laptop_fast_network": dataclasses.replace(_LAPTOP, network=10.0),
    "laptop_small_batches": dataclasses.replace(_LAPTOP, batch=10),
    "laptop_fast_small": dataclasses.replace(_LAPTOP, network=10.0, batch=10),
    "laptop_long": dataclasses.replace(_LAPTOP, until_s=2_000.0, evaluations=200),
}
VARIANTS = tuple(SIZES)
DEFAULT = "laptop"
TUNED = Path(__file__).with_name("figure4") / "tuned.json"
# What each method may spend on tuning. Runs are compared when warm starts are over.
SAMPLER, PRUNER, PRUNE_FROM, TRIALS = "tpe", "halving", 0.3, 16
MACHINES = 8  # of a replica
SHARDS = 4
MEMORY_BANDWIDTH = 5e9  # bytes per second at which a server's machine reads gradients: assumed
BYTES = 4 * PAPER.parameters
# Of the paper's network: what its compiled programs cost, as `dbjax.costs.speedup` reads them
# (tests/experiments/test_figure4.py); linear in the examples, for mini-batches of 25 to 500.
MESSAGES_S, EXAMPLE_S = 0.0417, 1.133e-3
# Standard deviation of the logarithm of a step, where the slowest of 8 machines counts in each
# phase: 0.015 for 50 examples, 0.019 for 100.
JITTER = 0.015
GPU_STEP_S = 0.0312  # whole, on `GPU_2012`, for mini-batches of 100; limited by arithmetic


def step_s(examples: int) -> float:
    """Of one mini-batch or portion on a replica of 8 machines."""
    return MESSAGES_S + EXAMPLE_S * examples


def servers(replicas: int) -> int:
    """Machines of the parameter server: those for which `transfer_s` is least."""
    bandwidth, message_s = GOOGLE_2012.machine.bandwidth_bytes_per_s, GOOGLE_2012.message_s
    best = math.sqrt(MACHINES * replicas * BYTES / (bandwidth * message_s))
    return min(MACHINES * replicas, round(best))


def transfer_s(replicas: int) -> float:
    """How long all replicas take to fetch or to push all parameters at once, with cards of 1 Gb/s.

    The slower side's cards, and a message from each machine of a replica to each of those
    of the server that have its part of the parameters.
    """
    card = GOOGLE_2012.machine.bandwidth_bytes_per_s
    width = servers(replicas)
    wire_s = max(BYTES / (MACHINES * card), replicas * BYTES / (width * card))
    return wire_s + width / MACHINES * GOOGLE_2012.message_s


def figure4(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """Data, network and cluster; `laptop` if no variant is given.

    Args:
      variant: of `SIZES`.
      replicas: whose number says how wide the parameter server is.
    """
    size = SIZES[variant or DEFAULT]
    config = defaults()
    config.until_s, config.evaluations = size.until_s, size.evaluations
    config.data = ml_collections.ConfigDict(
        {"name": "speech_frames", "num_states": size.states, "num_frames": size.frames}
    )
    config.model = ml_collections.ConfigDict(
        {"name": "speech", "width": size.width, "depth": size.depth}
    )
    config.batch_size = size.batch
    config.max_spans = 10_000
    config.checkpoint.keep = 0
    computed = SpeechConfig(width=size.width, depth=size.depth, states=size.states).parameters
    config.cluster.update(
        compute_s=step_s(100),
        latency_s=GOOGLE_2012.latency_s,
        service_s=1e-4,  # assumed
        size_scale=PAPER.parameters / computed / size.network,
    )
    config.cluster.machine.update(law="lognormal", sigma=JITTER, cards=SHARDS)
    with_replicas(config, replicas)
    return config


def with_replicas(config: ml_collections.ConfigDict, replicas: int) -> None:
    """So many, and the parameter server that they need.

    Between each replica and each shard there is a card that takes `transfer_s` for the
    shard's part of the parameters.
    """
    bandwidth = BYTES / SHARDS / transfer_s(replicas)
    config.cluster.machine.bandwidth_bytes_per_s = bandwidth
    config.cluster.memory_bandwidth_bytes_per_s = MEMORY_BANDWIDTH * servers(replicas) / SHARDS
    shard = {"bandwidth_bytes_per_s": bandwidth, "cards": replicas}
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


def winners() -> dict[str, dict[str, Any]]:
    """Size -> method -> what `experiments.figure4 --tune` has found."""
    return read_json(TUNED, of="tuning") if TUNED.is_file() else {}


def tuned_at(method: str, size: str) -> str | None:
    """At which size a method was tuned: at that, else at `laptop`; None: it was not."""
    sizes = winners()
    return next((here for here in (size, DEFAULT) if method in sizes.get(here, {})), None)


def tuned(
    config: ml_collections.ConfigDict, method: str, variant: str
) -> ml_collections.ConfigDict:
    """With the method's winner, if it was tuned."""
    size = tuned_at(method, variant or DEFAULT)
    if size is not None:
        assign(config, winners()[size][method]["fields"])
    return config
