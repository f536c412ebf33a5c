"""The shapes of HLO: arrays, and tuples of shapes."""

from __future__ import annotations

import dataclasses
import math
import re

from dbjax.costs.brackets import closing, pieces

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{.*\})?")
_BITS = re.compile(r"[a-z]+(\d+)")
_PACKED = re.compile(r"E\((\d+)\)")
_VALUELESS = {"token", "opaque"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of one type, or a tuple.

    Attributes:
      dtype: HLO's name, such as bf16; "tuple" for a tuple.
      dims: lengths of the axes; bounds, where they are dynamic.
      element_bits: as stored: s4 takes 8 unless its layout packs it.
      parts: of a tuple.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    element_bits: int = 0
    parts: tuple[Shape, ...] = ()

    @property
    def elements(self) -> int:
        if self.dtype == "tuple":
            return sum(part.elements for part in self.parts)
        return 0 if self.dtype in _VALUELESS else math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Without the table of pointers that a tuple may need."""
        if self.dtype == "tuple":
            return sum(part.size_bytes for part in self.parts)
        return -(-self.elements * self.element_bits // 8)


def shape(text: str) -> Shape:
    """Reads `f32[8,128]{1,0:T(8,128)}`, `(f32[2], (s4[3]{0:E(4)}, token[]))` and the like.

    Raises:
      ValueError: it is none of them.
    """
    text = text.strip()
    if text.startswith("(") and closing(text, 0) == len(text):
        return Shape("tuple", parts=tuple(shape(part) for part in pieces(text[1:-1])))
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise ValueError(f"not a shape of HLO: {text}")
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
        raise ValueError(f"not a type of HLO: {dtype}")
    return max(8, int(bits[1]))
