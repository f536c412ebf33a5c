"""Asynchronous elastic averaging SGD: replicas explore on their own, tied to a common center.

Zhang, Choromanska & LeCun 2015, "Deep learning with Elastic Averaging SGD", Algorithm 1.
"""

import dataclasses
from typing import Any

import jax
import optax

from dbjax import program as p


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(p.AsynchronousConfig):
    """Every `period` steps by `rule`, replica and center move by beta / replicas of their gap."""

    beta: float = p.bounded(0.9, above=0, at_most=1)
    period: int = p.bounded(4, at_least=1)


@jax.jit
def approach(params: p.Slices, center: p.Slices, alpha: float) -> tuple[p.Slices, p.Slices]:
    """Returns the replica's new parameters, and the center's update alpha (x - center)."""
    gain = jax.tree.map(lambda x, c: alpha * (x - c), params, center)
    return jax.tree.map(lambda x, g: x - g, params, gain), gain


async def client(node: Any, server: Any, gradient_fn: Any, batches: Any, config: Config) -> None:
    """Runs one replica (Algorithm 1, the worker), which meets the center once more at its end."""
    options = p.SessionOptions(batches.batch_size, None, config.period, local_rule=config.rule)
    replica = await p.ReplicaSession.join(node, server, options)

    async def meet_center(steps: int) -> None:
        center, alpha = await replica.fetch(), config.beta / config.replicas
        replica.slices, gain = approach(replica.slices, center.slices, alpha)
        replica.accumulate(gain, at=center, examples=steps * batches.batch_size)
        await replica.start_push()

    for step in replica.steps(config.steps):
        at_center = replica.params is None  # at step 0, or after a failure
        params = await replica.parameters()
        if not at_center and step % config.period == 0:
            await meet_center(config.period)
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        replica.step_locally(gradient)
        node.record(step=step, loss=loss)
    if replica.params is not None:
        await meet_center(step % config.period + 1)
    await replica.flush()


def program(
    runtime: p.Runtime, task: p.Task, config: Config, restore: p.Restore | None = None
) -> p.Program:
    """Places shards that hold the center, and add to it what replicas push."""
    rule, pushes = optax.scale(1.0), p.PushTimes(config.period, after=1)
    return p.asynchronous(runtime, task, config, client, restore, rule=rule, pushes=pushes)
