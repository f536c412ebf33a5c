"""From what a compiled program costs to how long it takes on a cluster (section 5, Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp

from dbjax.costs.program import Collective, Costs, ProgramPhase, costs_of
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.step_time import Bounds, Phase, PhasedStep

PACKET_BYTES = 1_500  # what an Ethernet packet carries


def phased_step(costs: Costs) -> PhasedStep:
    """The program as a step of as many machines as it has devices.

    Machines send each other what they need directly. An all-gather or reduce-scatter among n
    is one message to each of the n - 1 others; an all-reduce is a reduce-scatter and an
    all-gather of what it gave, or, if it fits a packet, goes up and down a binomial tree.
    """
    return PhasedStep(costs.devices, tuple(map(_phase, costs.phases)))


def predicted(costs: Costs, cluster: Cluster) -> Bounds:
    """Seconds of one execution on machines as `cluster.machine` is, from below and above."""
    return phased_step(costs).bounds(cluster)


def _phase(work: ProgramPhase) -> Phase:
    messages = [_messages(collective) for collective in work.collectives]
    return Phase(
        work.flops,
        work.bytes,
        rounds=max((rounds for rounds, _, _ in messages), default=0),  # they go at the same time
        messages=sum(count for _, count, _ in messages),
        sent_bytes=sum(size for _, _, size in messages),
        repeats=work.repeats,
    )


def _messages(collective: Collective) -> tuple[int, int, float]:
    """(rounds, messages, bytes) that one device sends."""
    others = collective.group_size - 1
    if not others:
        return 0, 0, 0.0
    match collective.kind:
        case "collective-permute" | "collective-broadcast":
            return 1, 1, collective.sent_bytes
        case "all-reduce" if collective.input_bytes <= PACKET_BYTES:
            steps = 2 * math.ceil(math.log2(collective.group_size))
            return steps, steps, float(steps * collective.input_bytes)
        case "all-reduce":
            return 2, 2 * others, collective.sent_bytes
    return 1, others, collective.sent_bytes


@final
class CompiledSteps:
    """`Cluster.compute_s` from costs: what a jitted function compiles to, as a `PhasedStep`."""

    def __init__(self) -> None:
        self._known: dict[Any, PhasedStep] = {}

    def __call__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> PhasedStep:
        """Compiles once for each function and what its work depends on.

        That is what `fn.work(*args)` says, or else the types of the last argument, which is a
        mini-batch.

        Raises:
          ValueError: it is no jitted function, and cannot be lowered.
        """
        lower, work = getattr(fn, "lower", None), getattr(fn, "work", _types_of_last)
        if not callable(lower):
            raise ValueError(
                f"Cluster.compute_s='costs': {fn!r} is not compiled as a whole; give seconds"
            )
        key = (fn, work(*args))
        if key not in self._known:
            self._known[key] = phased_step(costs_of(lower(*args).compile()))
        return self._known[key]


def _types_of_last(*args: Any) -> tuple[Any, ...]:
    return tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(args[-1]))
