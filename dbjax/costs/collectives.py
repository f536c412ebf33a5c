"""The collectives of a compiled program, which XLA's own cost analysis leaves out."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal, cast, get_args

import numpy as np

from dbjax.costs.hlo import Instruction, Module

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[(.*?)\](.*)")
_AXIS = re.compile(r"'?([^',:=]+)'?=(\d+)")
_PART = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?")  # an axis, or 'axis':(before)size of it
_ORDER = re.compile(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")


def groups(text: str, device_ids: str, devices: int) -> Groups:
    """Reads `replica_groups`.

    Args:
      text: `{{0,1},{2,3}}`; `{}`, which is all devices together; `[2,4]<=[4,2]T(1,0)`; or
        `mesh['a'=2,'b'=4] {'a'}`, since XLA of 2026.
      device_ids: the attribute that a mesh in an order of its own has behind it:
        `([4,2]T(1,0)) {'a'}`; else "".
      devices: how many there are.

    Raises:
      ValueError: the text has none of these forms.
    """
    if found := _IOTA.fullmatch(text):
        return _rows(_reordered(found[2], found[3]).reshape(_ints(found[1])))
    if found := _MESH.fullmatch(text):
        return _of_mesh(found[1], device_ids or found[2])
    if re.fullmatch(r"\{\s*\}", text):
        return (tuple(range(devices)),)
    if not re.fullmatch(r"\{(\s*\{[\d,\s]*\}\s*,?)+\}", text):
        raise ValueError(f"not a form of replica_groups: {text}")
    return tuple(_ints(group) for group in re.findall(r"\{([\d,\s]*)\}", text))


def _of_mesh(axes_text: str, rest: str) -> Groups:
    """The devices that differ only by where they are along the axes that are named last."""
    order, brace, named = rest.strip().partition("{")
    if not brace or not named.endswith("}"):
        raise ValueError(f"replica_groups name no axes of the mesh: {rest}")
    parts = _PART.findall(named[:-1])
    sizes: list[int] = []
    places: dict[tuple[str, str], int] = {}  # of an axis, or a part of one, among the sizes
    for name, size in _AXIS.findall(axes_text):
        _cut(name, int(size), parts, sizes, places)
    if unknown := {(name, before) for name, before, _ in parts} - set(places):
        raise ValueError(f"replica_groups name axes the mesh does not have: {sorted(unknown)}")
    last = [places[name, before] for name, before, _ in parts]
    first = [axis for axis in range(len(sizes)) if axis not in last]
    together = math.prod(sizes[axis] for axis in last)
    ids = _ids(order.strip(), math.prod(sizes)).reshape(sizes)
    return _rows(ids.transpose(first + last).reshape(-1, together))


def _cut(
    name: str,
    size: int,
    parts: list[tuple[str, str, str]],
    sizes: list[int],
    places: dict[tuple[str, str], int],
) -> None:
    """Adds an axis of the mesh: whole; or what is before each named part of it, and the part."""
    cuts = sorted((int(before), int(n)) for part, before, n in parts if part == name and before)
    done = 1
    for before, length in cuts:
        places[name, str(before)] = len(sizes) + 1
        sizes += [before // done, length]
        done = before * length
    if not cuts:
        places[name, ""] = len(sizes)
    sizes.append(size // done)


def _ids(order: str, devices: int) -> np.ndarray:
    """The devices of a mesh, in its order: "", `([4,2]T(1,0))` or `(3,1,2,0)`."""
    if found := _ORDER.fullmatch(order):
        return _reordered(found[1], found[2])
    return np.array(_ints(order.strip("()"))) if order else np.arange(devices)


def _reordered(dims: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... as an array of dims, its axes put in another order, and flat again."""
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return ids.transpose(_ints(order) if order else None).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in ids)


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
