"""A parser of compiled HLO text: computations, and instructions linked to their operands.

It is needed because XLA's Python module provides programs only as text. It differs from XLA's own
parser: it reads only what the costs need, and it relies on XLA's printer to print computations and
operands before their uses.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[()\[\]{},]')


def closing(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`.

    Raises:
      ValueError: the bracket is never closed.
    """
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += _step(token[0])
        if depth == 0:
            return token.end()
    raise ValueError(f"a bracket is never closed: {text[start : start + 80]}")


def pieces(text: str) -> Iterator[str]:
    """Splits text at the commas outside of brackets and strings. Blank text has no pieces.

    Raises:
      ValueError: the brackets are not balanced.
    """
    if not text.strip():
        return
    depth, start = 0, 0
    for token in _TOKEN.finditer(text):
        depth += _step(token[0])
        if depth < 0:
            raise ValueError(f"a closing bracket was never opened: {text[:80]}")
        if token[0] == "," and depth == 0:
            yield text[start : token.start()].strip()
            start = token.end()
    if depth:
        raise ValueError(f"a bracket is never closed: {text[:80]}")
    yield text[start:].strip()


def _step(token: str) -> int:
    return 1 if token in "([{" else -1 if token in ")]}" else 0


_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{.*\})?")
_BITS = re.compile(r"[a-z]+(\d+)")
_PACKED = re.compile(r"E\((\d+)\)")
_VALUELESS = {"token", "opaque"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an array or of a tuple.

    Attributes:
      dtype: HLO's name of the type, such as bf16; "tuple" for a tuple.
      dims: the lengths of the axes, or their upper bounds if they are dynamic.
      element_bits: the size of an element in memory; s4 takes 8 bits unless its layout packs it.
      parts: the shapes of a tuple's elements.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    element_bits: int = 0
    parts: tuple[Shape, ...] = ()

    @property
    def elements(self) -> int:
        """The number of elements, summed over the parts of a tuple."""
        if self.dtype == "tuple":
            return sum(part.elements for part in self.parts)
        return 0 if self.dtype in _VALUELESS else math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """The size in memory, without the table of pointers that a tuple may need."""
        if self.dtype == "tuple":
            return sum(part.size_bytes for part in self.parts)
        return -(-self.elements * self.element_bits // 8)


def shape(text: str) -> Shape:
    """Parses `f32[8,128]{1,0:T(8,128)}`, `(f32[2], (s4[3]{0:E(4)}, token[]))` and the like.

    Raises:
      ValueError: the text is not a shape.
    """
    text = text.strip()
    if text.startswith("(") and closing(text, 0) == len(text):
        return Shape("tuple", parts=tuple(shape(part) for part in pieces(text[1:-1])))
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise ValueError(f"not an HLO shape: {text}")
    dtype, dims, layout = found[1], found[2], found[3] or ""
    lengths = tuple(int(length.strip(" <=")) for length in dims.split(",") if length)
    return Shape(dtype, lengths, _element_bits(dtype, layout))


def _element_bits(dtype: str, layout: str) -> int:
    if dtype in _VALUELESS:
        return 0
    if packed := _PACKED.search(layout):
        return int(packed[1])
    if dtype == "pred":
        return 8
    bits = _BITS.match(dtype)
    if bits is None:
        raise ValueError(f"not an HLO type: {dtype}")
    return max(8, int(bits[1]))


_ARITHMETIC = """
    abs add and atan2 cbrt ceil clamp compare complex cosine count-leading-zeros divide erf
    exponential exponential-minus-one floor imag is-finite log log-plus-one logistic maximum
    minimum multiply negate not or popcnt power real remainder rng rng-bit-generator
    round-nearest-afz round-nearest-even rsqrt select shift-left shift-right-arithmetic
    shift-right-logical sign sine sqrt stochastic-convert subtract tan tanh xor
"""
_NAMING = """
    add-dependency after-all async-update bitcast constant domain get-dimension-size
    get-tuple-element opt-barrier optimization-barrier parameter partition-id replica-id tuple
"""
_MOVING = """
    all-gather all-gather-start all-reduce all-reduce-start all-to-all bitcast-convert broadcast
    collective-broadcast collective-permute collective-permute-start concatenate convert copy
    copy-start dynamic-reshape dynamic-slice dynamic-update-slice gather iota pad
    reduce-precision reduce-scatter reshape reverse rng-get-and-update-state set-dimension-size
    slice transpose
"""
ARITHMETIC = frozenset(_ARITHMETIC.split())  # cost one operation for each output
MOVING = frozenset(_MOVING.split())  # cost only memory traffic
FREE = frozenset(_NAMING.split())  # cost nothing; neither does any -done
SLICES = frozenset(["dynamic-slice", "gather", "slice"])  # read only the slice
UPDATES = frozenset(["dynamic-update-slice", "scatter"])  # write only the update, if in place


_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)(?=\()")
_TABLES = re.compile(r"\s*|FileNames|FunctionNames|FileLocations|StackFrames|\d+ .*|HloModule .*")
_INDEX = re.compile(r"/\*index=\d+\*/")
_CALLS = (
    *("calls", "to_apply", "condition", "body", "branch_computations", "select", "scatter"),
    *("true_computation", "false_computation", "called_computations"),
)
_LITERALS = {"parameter", "constant"}  # opcodes whose brackets do not contain operands


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Instruction:
    """One HLO instruction.

    Attributes:
      name: the name of the instruction, without `%`.
      opcode: the name of the operation, such as `dot`.
      shape: the shape of the result.
      operands: the instructions whose results it uses.
      attributes: the text of each attribute by its name, without `metadata`.
      called: the computations that an attribute names, by the name of the attribute.
      line: the line of the instruction, for error messages.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[Instruction, ...]
    attributes: Mapping[str, str]
    called: Mapping[str, tuple[Computation, ...]]
    line: str

    def ints(self, attribute: str) -> tuple[int, ...]:
        """Returns all integers in the text of an attribute, or () if the attribute is missing."""
        return tuple(map(int, re.findall(r"-?\d+", self.attributes.get(attribute, ""))))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Computation:
    """A sequence of HLO instructions.

    Attributes:
      name: the name of the computation.
      instructions: the instructions, each after its operands.
      root: the instruction whose value is the result.
    """

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Module:
    """A compiled program, which each of `replicas * partitions` devices runs.

    Attributes:
      entry: the computation that is run.
      computations: all computations by name.
      replicas: the number of replicas, in XLA's sense.
      partitions: the number of devices of each replica.
    """

    entry: Computation
    computations: Mapping[str, Computation]
    replicas: int
    partitions: int


def parse(text: str) -> Module:
    """Parses the text of a compiled program, `compiled.as_text()`.

    Raises:
      ValueError: a line cannot be parsed. The message contains the line.
    """
    if not text.lstrip().startswith("HloModule"):
        raise ValueError(f"HLO text must begin with HloModule, but it begins with {text[:80]!r}")
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
        raise ValueError(
            f"HLO text ends inside of computation {name}" if name else "HLO text has no ENTRY"
        )
    first_line = text.lstrip().split("\n", 1)[0]
    counts = (_count(first_line, key) for key in ("replica_count", "num_partitions"))
    return Module(computations[entry], computations, *counts)


def _count(first_line: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", first_line)
    return int(found[1]) if found else 1


def _computation(name: str, lines: list[str], known: Mapping[str, Computation]) -> Computation:
    if name in known:
        raise ValueError(f"HLO text has two computations named {name}")
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in filter(str.strip, lines):
        try:
            instruction = _instruction(line, instructions, known)
        except (ValueError, KeyError) as error:
            raise ValueError(f"not an HLO instruction ({error}): {line.strip()}") from error
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
        raise ValueError("it does not have the form name = shape opcode(operands)")
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
    """Returns the name of an operand, which may be preceded by its shape: `f32[8]{0} %x`."""
    return text.split()[-1].removeprefix("%")


def _attributes(text: str) -> dict[str, str]:
    pairs = [piece.partition("=") for piece in pieces(text)]
    if odd := [key for key, equals, _ in pairs if not equals]:
        raise ValueError(f"attribute without a value: {odd[0]}")
    return {key: value for key, _, value in pairs if key != "metadata"}
