"""(d) Push and fetch of 42 M parameters in one process, compared with the update alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import Measured, in_turn, milliseconds
from dbjax.models import PAPER, model
from dbjax.parameter_server import AccumulatedGradient, ParameterServer, Shard, server_rule
from dbjax.runtime import ThreadsRuntime
from dbjax.types import Params

RULE = optax.sgd(0.05)


def donated(params: Params, gradient: Params) -> Callable[[], Any]:
    """The update at its fastest: compiled by XLA, in place."""

    def update(params: Params, gradient: Params) -> Params:
        updates, _ = RULE.update(gradient, RULE.init(params), params)
        return optax.apply_updates(params, updates)

    compiled = jax.jit(update, donate_argnums=0)
    held = {"params": jax.tree.map(lambda p: p + 0, params)}

    def once() -> None:
        held["params"] = jax.block_until_ready(compiled(held["params"], gradient))

    return once


def fresh(params: Params, gradient: Params) -> Callable[[], Any]:
    """The update into new buffers, unchecked: the least cost of any server with snapshots."""

    @jax.jit
    def update(params: Params, gradient: Params) -> Params:
        updates, _ = RULE.update(gradient, RULE.init(params), params)
        return optax.apply_updates(params, updates)

    held = {"params": params}

    def once() -> None:
        held["params"] = jax.block_until_ready(update(held["params"], gradient))

    return once


def server(params: Params, gradient: Params, shards: int) -> Callable[[], Any]:
    """Push and fetch through handles, as a replica in a thread does."""
    served = ParameterServer.serve(ThreadsRuntime(), Shard, params, shards, server_rule(RULE))
    pieces = jax.block_until_ready(jax.jit(served.partition.split)(gradient))
    fetched = served.fetch(Shard.fetch, "replica/0").result()
    step = itertools.count()

    def once() -> None:
        nonlocal fetched
        accrued = AccumulatedGradient().plus(pieces, fetched.versions, 1)
        served.push(Shard.push, accrued.messages("replica/0", next(step))).result()
        fetched = served.fetch(Shard.fetch, "replica/0").result()
        jax.block_until_ready(fetched.slices)

    return once


def copied(params: Params) -> Callable[[], Any]:
    """One copy of the parameters into memory already in use: the limit of memory bandwidth."""
    source = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    target = np.ones_like(source)
    return lambda: np.copyto(target, source)


def run(rounds: int) -> list[Measured]:
    """Measures part (d); see `benchmarks.run`."""
    params = jax.block_until_ready(model(PAPER, 0).params)
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    cases = {
        "jitted, donated update": donated(params, gradient),
        "jitted update, new buffers": fresh(params, gradient),
        "push + fetch, 1 shard": server(params, gradient, 1),
        "push + fetch, 10 shards": server(params, gradient, 10),
        "copy of the parameters, NumPy": copied(params),
    }
    return [
        in_turn(
            "(d) push + fetch of 42 M parameters in one process",
            "ms",
            {name: milliseconds(once) for name, once in cases.items()},
            3 * rounds,
            {"push + fetch, 1 shard": "<= 2", "push + fetch, 10 shards": "<= 2"},
        )
    ]
