"""Top-k compression with error feedback: a push holds only the largest entries of a gradient.

Stich, Cordonnier & Jaggi 2018, "Sparsified SGD with Memory", Algorithm 1, made asynchronous.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dbjax.algorithms import downpour
from dbjax.program import Program, ReplicaSession, Runtime, Slice, Slices, Task, bounded


@dataclasses.dataclass(frozen=True)
class Config(downpour.Config):
    """Downpour SGD, with `share`: the fraction of each piece of a shard's slice that is pushed."""

    share: float = bounded(0.25, above=0, at_most=1)


@functools.partial(jax.jit, static_argnames="share")
def compressed(gradient: Slices, error: Slices | None, share: float) -> tuple[Slices, Slices]:
    """Returns the largest entries of gradient + error, and the remainder as the new error."""
    total = gradient if error is None else jax.tree.map(jnp.add, gradient, error)

    def largest(leaf: jax.Array) -> jax.Array:
        least = jax.lax.top_k(jnp.abs(leaf).ravel(), max(1, round(share * leaf.size)))[0][-1]
        return jnp.where(jnp.abs(leaf) >= least, leaf, 0)

    pushed = jax.tree.map(largest, total)
    return pushed, jax.tree.map(jnp.subtract, total, pushed)


async def client(node: Any, server: Any, gradient_fn: Any, batches: Any, config: Config) -> None:
    """Runs Downpour's client with compression; the session's `memory` is the error."""

    def push_bytes(slice_: Slice) -> int:  # a number and its place for each entry, or all numbers
        share = 8 * config.n_push * config.share
        return sum(min(leaf.nbytes, round(share * leaf.size)) for leaf in slice_.values())

    options = downpour.session_options(config, batches, push_bytes)
    replica = await ReplicaSession.join(node, server, options)
    for step in replica.steps(config.steps):
        if step % config.n_fetch == 0:
            replica.start_fetch()
        params = await replica.parameters()
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        gradient, replica.memory = compressed(gradient, replica.memory, config.share)
        replica.accumulate(gradient)
        replica.step_locally(gradient)
        if (step + 1) % config.n_push == 0:
            await replica.start_push()
        node.record(step=step, loss=loss)
    await replica.flush()


def program(runtime: Runtime, task: Task, config: Config, restore: Any = None) -> Program:
    """Places Downpour SGD with this client."""
    return downpour.program(runtime, task, config, restore, client=client)
