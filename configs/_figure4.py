"""The base of the configs of Figures 4 and 5: a small network, timed as the paper's large one.

The gradients are those of a small speech network, but a mini-batch takes the time, and a transfer
moves the bytes, of the paper's speech network with 42 M parameters. Each replica is sharded over 8
machines of the cluster that Figure 3 is fitted with, the number at which that network is fastest.

The paper does not say how many machines its parameter server has. Ours has the number that makes
a fetch by all replicas fastest, but at most as many machines as the replicas have. Four shards
represent them all.
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
    """The size of the experiment, and the assumptions where the paper gives no numbers.

    Attributes:
      frames: the number of speech frames, of which a tenth are held out.
      states: the number of classes.
      width: the number of units in each hidden layer.
      until_s: the virtual seconds of each run.
      evaluations: the number of evaluations in each run.
      batch: the number of examples in a mini-batch whose gradient is computed. The clock always
        counts the time of 100 examples, with which Figure 3 is fitted.
      network: the speed of the network, relative to network cards of 1 Gb/s and their time per
        message. Servers read gradients from their memory faster by the same factor.
      depth: the number of hidden layers.
      pairs: the most pairs that L-BFGS may keep, whatever the tuning found; None: no limit.
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
    # One hidden layer learns within seconds, and each further pair is one more program to compile.
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
# The tuning budget of each method. Pruning starts after 30% of a run, when warm starts are over.
SAMPLER, PRUNER, PRUNE_FROM, TRIALS = "tpe", "halving", 0.3, 16
MACHINES = 8  # machines of each replica
SHARDS = 4
MEMORY_BANDWIDTH = 5e9  # at which a server's machine reads gradients: assumed
BYTES = 4 * PAPER.parameters
# The time of a step of the paper's network, from the costs of its compiled programs, as
# `dbjax.costs.speedup` reads them (tests/experiments/test_figure4.py). It is linear in the number
# of examples for mini-batches of 25 to 500.
MESSAGES_S, EXAMPLE_S = 0.0417, 1.133e-3
# The standard deviation of the logarithm of a step's time, if the slowest of 8 machines counts in
# each phase, is 0.015 for 50 examples and 0.019 for 100.
JITTER = 0.015
# A step of the whole network on `GPU_2012` with mini-batches of 100; limited by arithmetic.
GPU_STEP_S = 0.0312


def step_s(examples: int) -> float:
    """Seconds for the gradient of a mini-batch or portion on a replica of 8 machines."""
    return MESSAGES_S + EXAMPLE_S * examples


def servers(replicas: int) -> int:
    """The number of parameter server machines for which `transfer_s` is least."""
    bandwidth, message_s = GOOGLE_2012.machine.bandwidth_bytes_per_s, GOOGLE_2012.message_s
    best = math.sqrt(MACHINES * replicas * BYTES / (bandwidth * message_s))
    return min(MACHINES * replicas, round(best))


def transfer_s(replicas: int) -> float:
    """Seconds for all replicas to fetch, or push, all parameters at once with 1 Gb/s cards.

    This is the time that the cards of the slower side need, plus one message from each machine of a
    replica to every server machine that has its part of the parameters.
    """
    card = GOOGLE_2012.machine.bandwidth_bytes_per_s
    width = servers(replicas)
    wire_s = max(BYTES / (MACHINES * card), replicas * BYTES / (width * card))
    return wire_s + width / MACHINES * GOOGLE_2012.message_s


def figure4(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """The data, network and cluster of a config.

    Args:
      variant: a key of `SIZES`; the empty string stands for "laptop".
      replicas: the number of replicas, which determines the size of the parameter server.
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
    """Sets the number of replicas, and sizes the parameter server for it.

    Each replica gets a network card for each shard, and each shard one for each replica. Their
    bandwidth is such that transferring the shard's part of the parameters takes `transfer_s`.
    """
    bandwidth = BYTES / SHARDS / transfer_s(replicas)
    config.cluster.machine.bandwidth_bytes_per_s = bandwidth
    config.cluster.memory_bandwidth_bytes_per_s = MEMORY_BANDWIDTH * servers(replicas) / SHARDS
    shard = {"bandwidth_bytes_per_s": bandwidth, "cards": replicas}
    with config.unlocked():
        config.cluster.machines = ml_collections.ConfigDict({"shard/*": shard})
        config.options.replicas = replicas


def downpour(variant: str, replicas: int) -> ml_collections.ConfigDict:
    """Downpour SGD with four shards; the caller sets the rule."""
    config = figure4(variant, replicas)
    config.options.update(shards=SHARDS, warm_start_updates=0, overlap=False)
    return config


def own_parameters(config: ml_collections.ConfigDict) -> None:
    """Turns the config into SGD with one replica that holds its parameters on its own machines.

    Nothing is transferred.
    """
    config.algorithm = "sgd"
    config.cluster.memory_bandwidth_bytes_per_s = MEMORY_BANDWIDTH * MACHINES
    with config.unlocked():
        config.cluster.machines = ml_collections.ConfigDict()


def on_a_gpu(config: ml_collections.ConfigDict) -> None:
    """Replaces the replica's 8 machines by one GPU of 2012."""
    config.cluster.compute_s = GPU_STEP_S
    config.cluster.memory_bandwidth_bytes_per_s = GPU_2012.memory_bandwidth_bytes_per_s
    config.cluster.machine.sigma = GPU_2012.sigma


def winners() -> dict[str, dict[str, Any]]:
    """The results of `experiments.figure4 --tune`: size -> method -> fields and accuracy."""
    return read_json(TUNED, of="tuning") if TUNED.is_file() else {}


def tuned_at(method: str, size: str) -> str | None:
    """The size whose tuning applies to a method: `size` itself, else "laptop".

    None if the method was tuned at neither.
    """
    sizes = winners()
    return next((here for here in (size, DEFAULT) if method in sizes.get(here, {})), None)


def tuned(
    config: ml_collections.ConfigDict, method: str, variant: str
) -> ml_collections.ConfigDict:
    """Sets the tuned fields of the method, if it was tuned, and returns the config."""
    size = tuned_at(method, variant or DEFAULT)
    if size is not None:
        assign(config, winners()[size][method]["fields"])
    return config
