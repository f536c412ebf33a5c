"""The collectives of a compiled program, which XLA's own cost analysis leaves out."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, cast, get_args

from dbjax.costs.groups import Groups, groups
from dbjax.costs.hlo import Instruction, Module

Kind = Literal[
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
]
_KINDS = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a compiled program, as one device takes part in it.

    Attributes:
      kind: HLO's name of it; an asynchronous one has that of its synchronous form.
      input_bytes: of one device's operands, all arrays together if several are combined.
      output_bytes: of one device's result.
      group_size: devices that take part together; 2 for a collective-permute.
      pairs: of a collective-permute: (source, target), as numbers of devices in the program.
      repeats: trips of the loop it is in; the product of them, if loops are nested.
      groups: who takes part with whom, as numbers of devices; empty for a collective-permute.
    """

    kind: Kind
    input_bytes: int
    output_bytes: int
    group_size: int
    pairs: tuple[tuple[int, int], ...] = ()
    repeats: int = 1
    groups: Groups = ()

    @property
    def sent_bytes(self) -> float:
        """The least that the busiest device must send, each time; no links are looked at.

        Reached by rings, and by halving and doubling: Thakur, Rabenseifner & Gropp 2005,
        "Optimization of Collective Communication Operations in MPICH", section 4.
        """
        size = self.group_size
        match self.kind:
            case "all-gather":
                return float((size - 1) * self.input_bytes)
            case "all-reduce":
                return 2 * (size - 1) / size * self.input_bytes
            case "reduce-scatter" | "all-to-all":
                return (size - 1) / size * self.input_bytes
            case "collective-permute":
                moves = any(source != target for source, target in self.pairs)
                return float(self.input_bytes * moves)
            case "collective-broadcast":
                return float(self.input_bytes * (size > 1))


def kind_of(instruction: Instruction) -> Kind | None:
    """None for all that is no collective, and for the -done, which costs nothing."""
    kind = instruction.opcode.removesuffix("-start")
    return cast(Kind, kind) if kind in _KINDS else None


def collective(instruction: Instruction, kind: Kind, module: Module) -> Collective:
    """Reads one.

    Raises:
      ValueError: its groups or pairs are not understood; its line is in the message.
    """
    try:
        together = _groups(instruction, kind, module)
        pairs = _pairs(instruction) if kind == "collective-permute" else ()
    except ValueError as error:
        raise ValueError(f"{error}, in: {instruction.line}") from error
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        shape = shape.parts[1]  # (operands, results, ...); an all-reduce has results only
    return Collective(
        kind,
        sum(operand.shape.size_bytes for operand in instruction.operands),
        shape.size_bytes,
        max(map(len, together), default=2),
        pairs,
        groups=together,
    )


def _groups(instruction: Instruction, kind: Kind, module: Module) -> Groups:
    if kind == "collective-permute":
        return ()
    attributes = instruction.attributes
    text = attributes.get("replica_groups", "{}")
    ids = attributes.get("device_ids", "")
    partitions, replicas = module.partitions, module.replicas
    if "channel_id" not in attributes:  # between replicas: of the first partition, say
        found = groups(text, ids, replicas)
        return tuple(tuple(replica * partitions for replica in group) for group in found)
    if attributes.get("use_global_device_ids") == "true":
        return groups(text, ids, replicas * partitions)
    if kind in ("all-to-all", "collective-broadcast"):  # between partitions of the first replica
        return groups(text, ids, partitions)
    return tuple(  # groups of replicas, each with all of its partitions
        tuple(r * partitions + p for r in group for p in range(partitions))
        for group in groups(text, ids, replicas)
    )


def _pairs(instruction: Instruction) -> tuple[tuple[int, int], ...]:
    text = instruction.attributes.get("source_target_pairs", "")
    if not re.fullmatch(r"\{(\s*\{\d+,\s*\d+\}\s*,?)*\}", text):
        raise ValueError(f"not a form of source_target_pairs: {text!r}")
    numbers = instruction.ints("source_target_pairs")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))
