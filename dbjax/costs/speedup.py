"""Predicts from its costs how long a compiled program takes on a cluster (section 5, Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp

from dbjax.costs.program import Collective, Costs, ProgramPhase, costs_of
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.step_time import Bounds, Phase, PhasedStep

PACKET_BYTES = 1_500  # payload of an Ethernet packet


def phased_step(costs: Costs) -> PhasedStep:
    """Converts the costs of a program to a step of as many machines as the program has devices.

    Machines send messages directly to each other. In an all-gather or a reduce-scatter among n
    machines, each machine sends one message to each of the n - 1 others. An all-reduce is a
    reduce-scatter followed by an all-gather of its result, or, if its input fits into a packet, a
    reduction up and a broadcast down a binomial tree.
    """
    return PhasedStep(costs.devices, tuple(map(_phase, costs.phases)))


def predicted(costs: Costs, cluster: Cluster) -> Bounds:
    """Returns lower and upper bounds on the seconds of one execution on a cluster.

    Args:
      costs: the costs of the program.
      cluster: the network, and the machine (`cluster.machine`) that runs each device.
    """
    return phased_step(costs).bounds(cluster)


def _phase(work: ProgramPhase) -> Phase:
    messages = [_messages(collective) for collective in work.collectives]
    return Phase(
        work.flops,
        work.bytes,
        rounds=max((rounds for rounds, _, _ in messages), default=0),  # collectives run in parallel
        messages=sum(count for _, count, _ in messages),
        sent_bytes=sum(size for _, _, size in messages),
        repeats=work.repeats,
    )


def _messages(collective: Collective) -> tuple[int, int, float]:
    """Returns the rounds of a collective, and the messages and bytes that one device sends."""
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
    """Implements `Cluster.compute_s="costs"`: turns jitted functions into a `PhasedStep` each."""

    def __init__(self) -> None:
        self._known: dict[Any, PhasedStep] = {}

    def __call__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> PhasedStep:
        """Returns the step of a jitted function, compiling it if necessary.

        The function is compiled once for each value of `fn.work(*args)`, or, if `fn` has no
        attribute `work`, for each combination of shapes and dtypes of the last argument, which is
        a mini-batch. Functions with the same `program` are one.

        Args:
          fn: a jitted function.
          args: its arguments.

        Raises:
          ValueError: `fn` is not a jitted function, so it cannot be lowered.
        """
        lower, work = getattr(fn, "lower", None), getattr(fn, "work", _types_of_last)
        if not callable(lower):
            raise ValueError(
                f"Cluster.compute_s='costs': {fn!r} is not a jitted function; give seconds instead"
            )
        key = (getattr(fn, "program", fn), work(*args))
        if key not in self._known:
            self._known[key] = phased_step(costs_of(lower(*args).compile()))
        return self._known[key]


def _types_of_last(*args: Any) -> tuple[Any, ...]:
    return tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(args[-1]))
