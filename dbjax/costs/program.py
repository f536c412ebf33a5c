"""What a compiled program costs one device: FLOPs, memory, and every collective.

    found = costs(jax.jit(step), params, batch)
    found.flops, found.memory.peak_bytes, found.sent_bytes, found.collectives

It is the program that was compiled, so the backend's: a CPU's compiler turns bfloat16 into
float32, in collectives too, whose bytes are then twice a TPU's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dbjax.costs.collectives import Collective, Kind
from dbjax.costs.hlo import parse
from dbjax.costs.phases import ProgramPhase, tally

__all__ = ["Collective", "Costs", "Kind", "Memory", "ProgramPhase", "costs", "costs_of"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """What one device must hold, in bytes.

    Attributes:
      alias_bytes: of results that take the place of donated arguments; they are counted in
        `argument_bytes` and in `output_bytes`.
      peak_bytes: most that is held at a time, as the compiler sees it; 0 if it does not say.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    peak_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one execution on one device. All devices run one program, and cost the same.

    Attributes:
      devices: that run the program together.
      flops: see `dbjax.costs.flops` for what is one; loops are counted by their trips.
      bytes: memory traffic: see `dbjax.costs.traffic`.
      phases: the work between rounds of communication, in an order that could be run.
      memory: what is held.
      unknown: what the numbers leave out, in words: custom calls, loops of unknown trips.
    """

    devices: int
    flops: float
    bytes: float
    phases: tuple[ProgramPhase, ...]
    memory: Memory
    unknown: tuple[str, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """All, in order; one in a loop once, with its `repeats`."""
        return tuple(each for phase in self.phases for each in phase.collectives)

    @property
    def sent_bytes(self) -> float:
        """The least that the busiest device must send: the sum over collectives and trips."""
        return sum(each.sent_bytes * each.repeats for each in self.collectives)

    @property
    def rounds(self) -> int:
        """Phases that end in communication, over all trips: each pays a latency."""
        return sum(
            phase.repeats
            for phase in self.phases
            if any(collective.group_size > 1 for collective in phase.collectives)
        )


def costs(fn: jax.stages.Wrapped, *args: Any, **kwargs: Any) -> Costs:
    """Compiles a function for its arguments, and reads what it costs. Nothing is allocated.

    Args:
      fn: made by `jax.jit`.
      *args: arrays, or `jax.ShapeDtypeStruct`s with the shardings that arrays would have.
      **kwargs: likewise.

    Raises:
      TypeError: `fn` is not jitted.
      ValueError: the compiled program is not understood: the message has its line.
    """
    if not isinstance(fn, jax.stages.Wrapped):
        raise TypeError(f"fn={fn!r} is not jitted; pass jax.jit(fn)")
    return costs_of(fn.lower(*args, **kwargs).compile())


def costs_of(compiled: jax.stages.Compiled) -> Costs:
    """Costs of a compiled program, optimised as it is.

    Raises:
      ValueError: it is not understood, or its backend shows no text or no memory.
    """
    text, held = compiled.as_text(), compiled.memory_analysis()
    if text is None or held is None:
        raise ValueError("this backend's compiled programs show no HLO text or no memory")
    module = parse(text)
    found = tally(module.entry, module)
    phases = tuple(phase for _, phase in sorted(found.phases.items(), key=lambda p: p[0]) if phase)
    return Costs(
        module.replicas * module.partitions,
        sum(phase.flops * phase.repeats for phase in phases),
        sum(phase.bytes * phase.repeats for phase in phases),
        phases,
        _memory(held),
        tuple(sorted(found.unknown)),
    )


def _memory(held: Any) -> Memory:
    return Memory(
        held.argument_size_in_bytes,
        held.output_size_in_bytes,
        held.temp_size_in_bytes,
        held.alias_size_in_bytes,
        held.peak_memory_in_bytes,
    )
