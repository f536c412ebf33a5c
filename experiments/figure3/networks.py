"""The four networks of Figure 3, and the costs of their partitioned training programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dbjax.costs.program import Costs, costs
from dbjax.models import PAPER, VisionConfig, functional

SPEECH, VISION_80M, VISION_330M, VISION_1700M = (
    "speech 42M",
    "images 80M",
    "images 330M",
    "images 1.7B",
)
CONFIGS: dict[str, functional.Config] = {
    SPEECH: PAPER,
    VISION_80M: VisionConfig(units=7),
    VISION_330M: VisionConfig(units=15),
    VISION_1700M: VisionConfig(units=36),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """The costs of one network on some number of machines.

    Attributes:
      network: the name of the network, a key of `CONFIGS`.
      parameters: the number of its parameters.
      machines: the number of machines that a replica is partitioned over.
      costs: the costs of the compiled program.
    """

    network: str
    parameters: int
    machines: int
    costs: Costs


def compiled(
    config: functional.Config, machines: int, batch_size: int, how: str | None = None
) -> Costs:
    """Compiles (parameters, mini-batch) -> (loss, gradient) for several devices.

    Args:
      config: the config of the network.
      machines: the number of devices that the network is partitioned over.
      batch_size: the number of examples in a mini-batch.
      how: how to partition the network; None: the way the paper does.

    Returns:
      The costs of the compiled program. Nothing is run or allocated.
    """
    params = jax.eval_shape(lambda: functional.init(config, 0))
    sharding = config.sharding(machines, how)
    mesh = sharding.mesh(jax.devices())
    everywhere = NamedSharding(mesh, PartitionSpec())
    inputs = jax.ShapeDtypeStruct((batch_size, config.inputs), jnp.float32, sharding=everywhere)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=everywhere)
    step = sharding.value_and_grad(params, mesh)
    return costs(step, sharding.abstract(params, mesh), (inputs, labels))


def points(
    networks: Sequence[str],
    machines: Sequence[int],
    batch_size: int,
    tell: Callable[[int, str, float], None] = lambda done, last, part: None,
) -> list[Point]:
    """Compiles every network for every number of machines.

    Args:
      networks: keys of `CONFIGS`.
      machines: the numbers of machines.
      batch_size: the number of examples in a mini-batch.
      tell: is called after each program with the number compiled so far, the last one's name, and
        0.
    """
    found: list[Point] = []
    for network in networks:
        config = CONFIGS[network]
        params = jax.eval_shape(lambda config=config: functional.init(config, 0))
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        for count in machines:
            found.append(Point(network, size, count, compiled(config, count, batch_size)))
            tell(len(found), f"{network} on {count}", 0.0)
    return found
