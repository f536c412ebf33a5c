"""The collectives of a compiled program, which XLA's own cost analysis does not cover."""

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
_PART = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?")  # an axis, or a part 'axis':(before)size
_ORDER = re.compile(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")


def groups(text: str, device_ids: str, devices: int) -> Groups:
    """Parses the attribute `replica_groups`.

    Args:
      text: the attribute, in one of the forms `{{0,1},{2,3}}`; `{}`, which stands for all devices
        in one group; `[2,4]<=[4,2]T(1,0)`; or, since XLA of 2026, `mesh['a'=2,'b'=4] {'a'}`.
      device_ids: the attribute that follows a mesh whose devices have another order, such as
        `([4,2]T(1,0)) {'a'}`; otherwise "".
      devices: the number of devices.

    Returns:
      The groups, as tuples of device numbers.

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
        raise ValueError(f"unknown form of replica_groups: {text}")
    return tuple(_ints(group) for group in re.findall(r"\{([\d,\s]*)\}", text))


def _of_mesh(axes_text: str, rest: str) -> Groups:
    """Groups the devices that differ only in their positions along the axes named in braces."""
    order, brace, named = rest.strip().partition("{")
    if not brace or not named.endswith("}"):
        raise ValueError(f"replica_groups does not name any axes of the mesh: {rest}")
    parts = _PART.findall(named[:-1])
    sizes: list[int] = []
    places: dict[tuple[str, str], int] = {}  # index in `sizes` of an axis, or of a part of one
    for name, size in _AXIS.findall(axes_text):
        _split_axis(name, int(size), parts, sizes, places)
    if unknown := {(name, before) for name, before, _ in parts} - set(places):
        raise ValueError(f"replica_groups names axes the mesh does not have: {sorted(unknown)}")
    last = [places[name, before] for name, before, _ in parts]
    first = [axis for axis in range(len(sizes)) if axis not in last]
    together = math.prod(sizes[axis] for axis in last)
    ids = _ids(order.strip(), math.prod(sizes)).reshape(sizes)
    return _rows(ids.transpose(first + last).reshape(-1, together))


def _split_axis(
    name: str,
    size: int,
    parts: list[tuple[str, str, str]],
    sizes: list[int],
    places: dict[tuple[str, str], int],
) -> None:
    """Appends an axis of the mesh to `sizes`, split so that each named part is a separate entry.

    `places` gets the index of each named part, or of the whole axis if no part of it is named.
    """
    splits = sorted((int(before), int(n)) for part, before, n in parts if part == name and before)
    done = 1
    for before, length in splits:
        places[name, str(before)] = len(sizes) + 1
        sizes += [before // done, length]
        done = before * length
    if not splits:
        places[name, ""] = len(sizes)
    sizes.append(size // done)


def _ids(order: str, devices: int) -> np.ndarray:
    """Returns the devices of a mesh in its order: "", `([4,2]T(1,0))` or `(3,1,2,0)`."""
    if found := _ORDER.fullmatch(order):
        return _reordered(found[1], found[2])
    return np.array(_ints(order.strip("()"))) if order else np.arange(devices)


def _reordered(dims: str, order: str | None) -> np.ndarray:
    """Returns 0, 1, 2, ... reshaped to `dims`, transposed to `order`, and flattened."""
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
    """One collective of a compiled program, from the point of view of one device.

    Attributes:
      kind: HLO's name of the collective. An asynchronous collective has the name of its synchronous
        form.
      input_bytes: the size of one device's operands. If several arrays are combined, it is their
        sum.
      output_bytes: the size of one device's result.
      group_size: the number of devices that take part together; 2 for a collective-permute.
      pairs: the (source, target) device numbers of a collective-permute; otherwise empty.
      repeats: the trip count of the surrounding loop; the product of trip counts for nested loops.
      groups: the device numbers of each group that takes part together; empty for a
        collective-permute.
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
        """The minimum number of bytes that the busiest device must send in one execution.

        It does not depend on the network's topology. Ring algorithms and recursive halving and
        doubling attain it: Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective
        Communication Operations in MPICH", section 4.
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
    """Returns the kind of a collective.

    Returns None for other instructions, and for the `-done` of an asynchronous collective, which
    costs nothing.
    """
    kind = instruction.opcode.removesuffix("-start")
    return cast(Kind, kind) if kind in _KINDS else None


def collective(instruction: Instruction, kind: Kind, module: Module) -> Collective:
    """Reads a collective.

    Args:
      instruction: the instruction.
      kind: its kind, from `kind_of`.
      module: the program that contains it.

    Raises:
      ValueError: its groups or pairs cannot be parsed. The message contains the line.
    """
    try:
        together = _groups(instruction, kind, module)
        pairs = _pairs(instruction) if kind == "collective-permute" else ()
    except ValueError as error:
        raise ValueError(f"{error}, in: {instruction.line}") from error
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        shape = shape.parts[1]  # (operands, results, ...); an all-reduce-start has only results
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
    if "channel_id" not in attributes:  # between replicas; the first partition stands for all
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
        raise ValueError(f"unknown form of source_target_pairs: {text!r}")
    numbers = instruction.ints("source_target_pairs")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))
