"""The four networks of Figure 3, and what their partitioned training programs cost."""

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
    """One network on so many machines."""

    network: str
    parameters: int
    machines: int
    costs: Costs


def compiled(
    config: functional.Config, machines: int, batch_size: int, how: str | None = None
) -> Costs:
    """Costs of (parameters, mini-batch) -> (loss, gradient), cut over so many devices."""
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
    """Compiles each network on each number of machines; tells how many, and the last one."""
    found: list[Point] = []
    for network in networks:
        config = CONFIGS[network]
        params = jax.eval_shape(lambda config=config: functional.init(config, 0))
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        for count in machines:
            found.append(Point(network, size, count, compiled(config, count, batch_size)))
            tell(len(found), f"{network} on {count}", 0.0)
    return found
