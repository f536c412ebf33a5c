"""Counts the bytes that one HLO instruction moves between memory and the arithmetic units.

An instruction moves each of its operands once, and its result. An instruction that only renames a
value moves nothing. A slice, a gather or an in-place update moves only the elements that it reads
or writes, not the whole array. This also holds inside a fusion, whose intermediate values never
reach memory.
"""

from __future__ import annotations

from dbjax.costs.hlo import FREE, SLICES, UPDATES, Computation, Instruction

_RENAMES = frozenset(["bitcast", "reshape"])


def traffic(instruction: Instruction) -> int:
    """Returns the bytes that an instruction other than a collective moves on one device.

    For collectives, see `dbjax.costs.collectives.Collective`.
    """
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0
    if opcode == "fusion":
        return _of_fusion(instruction)
    operands = {operand.name: operand.shape.size_bytes for operand in instruction.operands}
    written = instruction.shape.size_bytes
    if opcode == "copy-start":
        written = instruction.shape.parts[0].size_bytes  # parts: (result, operand, context)
    if opcode in SLICES | UPDATES:
        operands.pop(instruction.operands[0].name)
        written *= opcode in SLICES
        read = written if opcode in SLICES else _update_bytes(instruction)
        return read + written + sum(operands.values())
    return sum(operands.values()) + written


def _of_fusion(instruction: Instruction) -> int:
    (inner,) = instruction.called["calls"]
    in_place = _in_place(inner.root)
    read = sum(
        _read_bytes(parameter, inner, in_place)
        for parameter in inner.instructions
        if parameter.opcode == "parameter"
    )
    return read + _written_bytes(inner.root)


def _read_bytes(value: Instruction, inner: Computation, in_place: list[Instruction]) -> int:
    """Counts the bytes that a fusion reads of a parameter or a renamed parameter.

    They are those of the slices taken of it, or of the whole array if it is used in another way.
    """
    total = 0
    for user in inner.instructions:
        if value not in user.operands:
            continue
        first_only = user.operands.index(value) == 0 and user.operands.count(value) == 1
        if first_only and user.opcode in SLICES:
            total += user.shape.size_bytes
        elif first_only and user.opcode in _RENAMES and user is not inner.root:
            total += _read_bytes(user, inner, in_place)
        elif not (first_only and user in in_place):
            return value.shape.size_bytes
    return min(total, value.shape.size_bytes)


def _in_place(root: Instruction) -> list[Instruction]:
    """Returns the updates that are results of a fusion, which happen without copying the array."""
    if root.opcode in UPDATES:
        return [root]
    through = root.operands if root.opcode in _RENAMES | {"tuple"} else ()
    return [update for operand in through for update in _in_place(operand)]


def _written_bytes(root: Instruction) -> int:
    if root.opcode in UPDATES:
        return _update_bytes(root)
    if root.opcode == "tuple":
        return sum(map(_written_bytes, root.operands))
    if root.opcode in _RENAMES and _in_place(root):
        return _written_bytes(root.operands[0])
    return root.shape.size_bytes


def _update_bytes(update: Instruction) -> int:
    """Counts the bytes that an update writes. A scatter also reads them, since it combines."""
    if update.opcode == "scatter":
        return 2 * sum(
            new.shape.size_bytes for new in update.operands[len(update.operands) // 2 + 1 :]
        )
    return update.operands[1].shape.size_bytes
