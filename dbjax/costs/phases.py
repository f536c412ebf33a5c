"""A program's work in the order that its communication imposes, whatever the schedule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from dbjax.costs.collectives import Collective, collective, kind_of
from dbjax.costs.flops import flops
from dbjax.costs.hlo import Computation, Instruction, Module
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
