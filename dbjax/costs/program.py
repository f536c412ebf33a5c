"""The costs of a compiled program for one device: FLOPs, memory, and every collective.

    found = costs(jax.jit(step), params, batch)
    found.flops, found.memory.peak_bytes, found.sent_bytes, found.collectives

The costs are those of the program that the current backend's compiler produced. For example, a
CPU's compiler converts bfloat16 to float32, also in collectives, which then send twice as many
bytes as on a TPU.
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
    """Work that depends on the same number of communication rounds, and the collectives after it.

    Attributes:
      flops: the FLOPs of one device in one execution of the phase.
      bytes: the memory traffic of one device in one execution, including that of the collectives.
      collectives: the collectives at the end of the phase. They depend on the work of this phase
        or of earlier ones, but not on each other.
      repeats: the trip count of the loop that the phase is part of; the product of trip counts for
        nested loops. The phases of a loop follow one another once, because loops are not unrolled.
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
        """Returns the phase as part of a loop with `trips` trips."""
        collectives = tuple(
            dataclasses.replace(c, repeats=c.repeats * trips) for c in self.collectives
        )
        return dataclasses.replace(self, collectives=collectives, repeats=self.repeats * trips)


@dataclasses.dataclass(frozen=True)
class Tally:
    """The costs of a sequence of instructions.

    Attributes:
      phases: the phases by (rounds of communication before the phase, repeats).
      rounds: the number of rounds of communication before the result is available.
      unknown: descriptions of costs that are not included.
    """

    phases: Mapping[tuple[int, int], ProgramPhase]
    rounds: int = 0
    unknown: frozenset[str] = frozenset()

    def communicates(self) -> bool:
        """Returns True if any phase has collectives."""
        return any(phase.collectives for phase in self.phases.values())

    def then(self, other: Tally, rounds: int) -> Tally:
        """Appends another tally that begins after some rounds of communication.

        The result of `other` becomes the result of the combined tally.
        """
        phases = dict(self.phases)
        for (level, repeats), phase in other.phases.items():
            key = (rounds + level, repeats)
            phases[key] = phases[key] + phase if key in phases else phase
        return Tally(phases, rounds + other.rounds, self.unknown | other.unknown)

    def looped(self, trips: int) -> Tally:
        """Returns the costs of a loop with `trips` trips and these costs for each trip."""
        if not self.communicates():
            total = self.phases.get((0, 1), ProgramPhase())
            once = ProgramPhase(total.flops * trips, total.bytes * trips)
            return Tally({(0, 1): once}, 0, self.unknown)
        phases = {
            (level, repeats * trips): phase.looped(trips)
            for (level, repeats), phase in self.phases.items()
        }
        # Whatever follows the loop also follows the work after the loop's last collective.
        rounds = 1 + max(level for level, _ in phases)
        return Tally(phases, rounds, self.unknown)

    def cost(self) -> tuple[float, float, float]:
        """Returns (bytes sent, FLOPs, memory traffic), the key that selects the costlier branch."""
        phases = self.phases.values()
        sent = sum(c.sent_bytes * c.repeats for phase in phases for c in phase.collectives)
        return (
            sent,
            sum(phase.flops * phase.repeats for phase in phases),
            sum(phase.bytes * phase.repeats for phase in phases),
        )


def tally(computation: Computation, module: Module) -> Tally:
    """Adds up the costs of a computation and of all computations that it calls."""
    found = Tally({})
    ready: dict[str, int] = {}  # rounds until an instruction's value is available
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
    unknown = f"while {instruction.name}: its trip count is not known and is counted as one"
    return dataclasses.replace(trip.looped(1), unknown=trip.unknown | {unknown})


def _words(instruction: Instruction) -> str:
    target = instruction.attributes.get("custom_call_target", instruction.name).strip('"')
    return f"{instruction.opcode} {target}: FLOPs are not known; only memory traffic is counted"


__all__ = ["Collective", "Costs", "Kind", "Memory", "ProgramPhase", "costs", "costs_of"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory that one device needs, in bytes.

    Attributes:
      argument_bytes: the size of the arguments.
      output_bytes: the size of the results.
      temporary_bytes: the size of temporary buffers.
      alias_bytes: the size of results that reuse the memory of donated arguments. It is included in
        both `argument_bytes` and `output_bytes`.
      peak_bytes: the compiler's estimate of the largest amount in use at any time; 0 if the
        compiler does not report it.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    peak_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one execution of a program on one device.

    All devices run the same program, so its costs are the same on each.

    Attributes:
      devices: the number of devices that run the program together.
      flops: the floating-point operations, as defined in `dbjax.costs.flops`. The body of a loop
        counts once for each trip.
      bytes: the memory traffic, as defined in `dbjax.costs.traffic`.
      phases: the work between rounds of communication, in an order in which it can run.
      memory: the memory that the program needs.
      unknown: descriptions of costs that are not included: custom calls, and loops whose trip
        count is not known.
    """

    devices: int
    flops: float
    bytes: float
    phases: tuple[ProgramPhase, ...]
    memory: Memory
    unknown: tuple[str, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """All collectives in order. One in a loop occurs once, with the trip count in `repeats`."""
        return tuple(each for phase in self.phases for each in phase.collectives)

    @property
    def sent_bytes(self) -> float:
        """The minimum number of bytes that the busiest device must send, over all collectives."""
        return sum(each.sent_bytes * each.repeats for each in self.collectives)

    @property
    def rounds(self) -> int:
        """The number of executed phases that end in communication; each one pays a latency."""
        return sum(
            phase.repeats
            for phase in self.phases
            if any(collective.group_size > 1 for collective in phase.collectives)
        )


def costs(fn: jax.stages.Wrapped, *args: Any, **kwargs: Any) -> Costs:
    """Compiles a function for its arguments, and returns its costs. Allocates no arrays.

    Args:
      fn: a function returned by `jax.jit`.
      *args: arrays, or `jax.ShapeDtypeStruct`s with the shardings that the arrays would have.
      **kwargs: further arguments of the same kinds.

    Returns:
      The costs of one execution on one device.

    Raises:
      TypeError: `fn` is not jitted.
      ValueError: the compiled program cannot be parsed. The message contains the line.
    """
    if not isinstance(fn, jax.stages.Wrapped):
        raise TypeError(f"fn={fn!r} is not jitted; pass jax.jit(fn)")
    return costs_of(fn.lower(*args, **kwargs).compile())


def costs_of(compiled: jax.stages.Compiled) -> Costs:
    """Returns the costs of a compiled program, after XLA's optimisations.

    Args:
      compiled: the result of `jax.jit(fn).lower(...).compile()`.

    Raises:
      ValueError: the program cannot be parsed, or the backend does not provide its HLO text or
        memory analysis.
    """
    text, held = compiled.as_text(), compiled.memory_analysis()
    if text is None or held is None:
        raise ValueError("this backend does not provide the HLO text or memory of its programs")
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
