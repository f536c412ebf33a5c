"""Top-k compression with error feedback: a push has only the largest entries of each gradient.

Stich, Cordonnier & Jaggi 2018, "Sparsified SGD with Memory", Algorithm 1, made asynchronous.
"""

import dataclasses
from typing import Any

from dbjax.algorithms import downpour
from dbjax.optim import compression
from dbjax.program import Program, ReplicaSession, Restore, Runtime, Slice, Task, bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(downpour.Config):
    """Downpour SGD, with `share`: how much of each leaf of a shard's slice is pushed."""

    share: float = bounded(0.25, above=0, at_most=1)


async def client(node: Any, server: Any, gradient_fn: Any, batches: Any, config: Config) -> None:
    """Runs Downpour's client with compression; the session's `memory` is the error."""

    def push_bytes(slice_: Slice) -> int:
        return compression.sparse_bytes(slice_, config.share, config.n_push)

    options = downpour.session_options(config, batches, push_bytes)
    replica = await ReplicaSession.join(node, server, options)
    for step in replica.steps(config.steps):
        if step % config.n_fetch == 0:
            replica.start_fetch()
        params = await replica.parameters()
        loss, gradient = await node.compute(gradient_fn, params, batches.at(step))
        gradient, replica.memory = compression.top_k(gradient, replica.memory, config.share)
        replica.accumulate(gradient)
        replica.step_locally(gradient)
        del params, gradient  # so that each slice is freed when its shard has applied it
        if (step + 1) % config.n_push == 0:
            await replica.start_push()
        node.record(step=step, loss=loss)
    await replica.flush()


def program(
    runtime: Runtime, task: Task, config: Config, restore: Restore | None = None
) -> Program:
    """Places Downpour SGD with this client."""
    return downpour.program(runtime, task, config, restore, client=client)
