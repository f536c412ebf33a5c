"""A parser of compiled HLO text: computations, and instructions that know their operands.

Differs from XLA's own parser: it reads what costs need, and relies on what XLA's printer
does: what is called or used stands before it is. (XLA's Python module hands out text only.)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from dbjax.costs.brackets import closing, pieces
from dbjax.costs.shapes import Shape, shape

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)(?=\()")
_TABLES = re.compile(r"\s*|FileNames|FunctionNames|FileLocations|StackFrames|\d+ .*|HloModule .*")
_INDEX = re.compile(r"/\*index=\d+\*/")
_CALLS = (
    *("calls", "to_apply", "condition", "body", "branch_computations", "select", "scatter"),
    *("true_computation", "false_computation", "called_computations"),
)
_LITERALS = {"parameter", "constant"}  # what is in their brackets are no operands


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Instruction:
    """One instruction.

    Attributes:
      attributes: the text of each, by name; metadata is left out.
      called: the computations named in an attribute, by the attribute.
      line: as it was read, for errors.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[Instruction, ...]
    attributes: Mapping[str, str]
    called: Mapping[str, tuple[Computation, ...]]
    line: str

    def ints(self, attribute: str) -> tuple[int, ...]:
        """All numbers in an attribute; none if it is missing."""
        return tuple(map(int, re.findall(r"-?\d+", self.attributes.get(attribute, ""))))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Computation:
    """Instructions, each after its operands, and the one whose value is the result."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Module:
    """A program, as each of `replicas * partitions` devices runs it."""

    entry: Computation
    computations: Mapping[str, Computation]
    replicas: int
    partitions: int


def parse(text: str) -> Module:
    """Reads the text of a compiled program: `compiled.as_text()`.

    Raises:
      ValueError: a line is not understood; it is in the message.
    """
    if not text.lstrip().startswith("HloModule"):
        raise ValueError(f"HLO text begins with HloModule, this with: {text[:80]!r}")
    computations: dict[str, Computation] = {}
    entry, name, body = "", "", []  # type: str, str, list[str]
    for line in text.splitlines():
        if not name and (header := _HEADER.fullmatch(_INDEX.sub("", line))):
            name, body = header[2], []
            entry = name if header[1] else entry
        elif name and line.startswith("}"):
            computations[name] = _computation(name, body, computations)
            name = ""
        elif name:
            body.append(line)
        elif not _TABLES.fullmatch(line):
            raise ValueError(f"not a line of HLO: {line}")
    if name or not entry:
        raise ValueError(f"HLO text ends in {name}" if name else "HLO text has no ENTRY")
    head = text.lstrip().split("\n", 1)[0]
    counts = (_count(head, key) for key in ("replica_count", "num_partitions"))
    return Module(computations[entry], computations, *counts)


def _count(head: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", head)
    return int(found[1]) if found else 1


def _computation(name: str, lines: list[str], known: Mapping[str, Computation]) -> Computation:
    if name in known:
        raise ValueError(f"HLO text has two computations of the name {name}")
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in filter(str.strip, lines):
        try:
            instruction = _instruction(line, instructions, known)
        except (ValueError, KeyError) as error:
            raise ValueError(f"not an instruction of HLO ({error}): {line.strip()}") from error
        instructions[instruction.name] = instruction
        if line.lstrip().startswith("ROOT "):
            root = instruction
    if root is None:
        raise ValueError(f"the HLO computation {name} has no ROOT")
    return Computation(name, tuple(instructions.values()), root)


def _instruction(
    line: str, instructions: Mapping[str, Instruction], known: Mapping[str, Computation]
) -> Instruction:
    found = _INSTRUCTION.fullmatch(_INDEX.sub("", line))
    if found is None:
        raise ValueError("it has no name = shape opcode(operands)")
    name, rest = found[2], found[3]
    end = closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        raise ValueError("it has no opcode")
    close = closing(rest, opcode.end())
    inside = rest[opcode.end() + 1 : close - 1]
    attributes = _attributes(rest[close:].removeprefix(","))
    operands = () if opcode[1] in _LITERALS else tuple(map(_name, pieces(inside)))
    called = {
        key: tuple(known[_name(each)] for each in pieces(attributes[key].strip("{}")))
        for key in _CALLS
        if key in attributes
    }
    return Instruction(
        name,
        opcode[1],
        shape(rest[:end]),
        tuple(instructions[operand] for operand in operands),
        attributes,
        called,
        line.strip(),
    )


def _name(text: str) -> str:
    """Of an operand, which may come with its shape: `f32[8]{0} %x`."""
    return text.split()[-1].removeprefix("%")


def _attributes(text: str) -> dict[str, str]:
    pairs = [piece.partition("=") for piece in pieces(text)]
    if odd := [key for key, equals, _ in pairs if not equals]:
        raise ValueError(f"attribute without a value: {odd[0]}")
    return {key: value for key, _, value in pairs if key != "metadata"}
