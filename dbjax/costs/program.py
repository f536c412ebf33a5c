"""What a compiled program costs one device: FLOPs, memory, and every collective.

    found = costs(jax.jit(step), params, batch)
    found.flops, found.memory.peak_bytes, found.sent_bytes, found.collectives

It is the program that was compiled, so the backend's: a CPU's compiler turns bfloat16 into
float32, in collectives too, whose bytes are then twice a TPU's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from dbjax.costs.collectives import Collective, Kind, collective, kind_of
from dbjax.costs.flops import flops
from dbjax.costs.hlo import Computation, Instruction, Module, parse
from dbjax.costs.traffic import traffic

_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class ProgramPhase:
    """Work that depends on equally many rounds of communication, then the collectives after it.

    Attributes:
      flops: of one device, each time.
      bytes: memory traffic of one device, each time; that of the collectives included.
      collectives: which need this phase's work, or an earlier one's, and not each other.
      repeats: trips of the loop this is a part of; the product of them, if loops are nested.
        The parts of a loop stand one after another: it is not unrolled.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    repeats: int = 1

    def __add__(self, other: ProgramPhase) -> ProgramPhase:
        collectives = self.collectives + other.collectives
        return ProgramPhase(
            self.flops + other.flops, self.bytes + other.bytes, collectives, self.repeats
        )

    def __bool__(self) -> bool:
        return bool(self.flops or self.bytes or self.collectives)

    def looped(self, trips: int) -> ProgramPhase:
        collectives = tuple(
            dataclasses.replace(c, repeats=c.repeats * trips) for c in self.collectives
        )
        return dataclasses.replace(self, collectives=collectives, repeats=self.repeats * trips)


@dataclasses.dataclass(frozen=True)
class Tally:
    """What some instructions cost.

    Attributes:
      phases: by (rounds of communication before it, repeats).
      rounds: of communication, until the result is there.
      unknown: what is left out, in words.
    """

    phases: Mapping[tuple[int, int], ProgramPhase]
    rounds: int = 0
    unknown: frozenset[str] = frozenset()

    def communicates(self) -> bool:
        return any(phase.collectives for phase in self.phases.values())

    def then(self, other: Tally, rounds: int) -> Tally:
        """With another, that begins after some rounds; its result is taken for the result."""
        phases = dict(self.phases)
        for (level, repeats), phase in other.phases.items():
            key = (rounds + level, repeats)
            phases[key] = phases[key] + phase if key in phases else phase
        return Tally(phases, rounds + other.rounds, self.unknown | other.unknown)

    def looped(self, trips: int) -> Tally:
        if not self.communicates():
            total = self.phases.get((0, 1), ProgramPhase())
            once = ProgramPhase(total.flops * trips, total.bytes * trips)
            return Tally({(0, 1): once}, 0, self.unknown)
        phases = {
            (level, repeats * trips): phase.looped(trips)
            for (level, repeats), phase in self.phases.items()
        }
        # what follows the loop follows all of it, the work after its last collective too
        rounds = 1 + max(level for level, _ in phases)
        return Tally(phases, rounds, self.unknown)

    def cost(self) -> tuple[float, float, float]:
        """To choose the costlier branch: bytes sent, then FLOPs, then traffic."""
        phases = self.phases.values()
        sent = sum(c.sent_bytes * c.repeats for phase in phases for c in phase.collectives)
        return (
            sent,
            sum(phase.flops * phase.repeats for phase in phases),
            sum(phase.bytes * phase.repeats for phase in phases),
        )


def tally(computation: Computation, module: Module) -> Tally:
    """Costs of a computation, with all it calls."""
    found = Tally({})
    ready: dict[str, int] = {}  # rounds until an instruction's value is there
    for instruction in computation.instructions:
        begin = max((ready[operand.name] for operand in instruction.operands), default=0)
        found = found.then(_of(instruction, module), begin)
        ready[instruction.name] = found.rounds
    return dataclasses.replace(found, rounds=ready[computation.root.name])


def _of(instruction: Instruction, module: Module) -> Tally:
    if kind := kind_of(instruction):
        found = collective(instruction, kind, module)
        moved = float(found.input_bytes + found.output_bytes)
        return Tally({(0, 1): ProgramPhase(0.0, moved, (found,))}, 1)
    match instruction.opcode:
        case "while":
            return _of_while(instruction, module)
        case "conditional":
            branches = [tally(c, module) for key in instruction.called.values() for c in key]
            return max(branches, key=Tally.cost)
        case "call" | "async-start":
            return _of_call(instruction, module)
        case "fusion":
            inner = _of_call(instruction, module)
            if inner.communicates():
                return inner
    work = flops(instruction)
    unknown = frozenset() if work is not None else frozenset([_words(instruction)])
    return Tally({(0, 1): ProgramPhase(work or 0.0, float(traffic(instruction)))}, 0, unknown)


def _of_call(instruction: Instruction, module: Module) -> Tally:
    (inner,) = (c for called in instruction.called.values() for c in called)
    return tally(inner, module)


def _of_while(instruction: Instruction, module: Module) -> Tally:
    found = _TRIPS.search(instruction.attributes.get("backend_config", ""))
    (condition,), (body,) = (instruction.called[key] for key in ("condition", "body"))
    before = tally(condition, module)
    trip = before.then(tally(body, module), before.rounds)
    if found:
        return trip.looped(int(found[1]))
    unknown = f"while {instruction.name}: its trips are not known, and counted as one"
    return dataclasses.replace(trip.looped(1), unknown=trip.unknown | {unknown})


def _words(instruction: Instruction) -> str:
    target = instruction.attributes.get("custom_call_target", instruction.name).strip('"')
    return f"{instruction.opcode} {target}: counted as memory traffic only, its FLOPs are not known"


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
