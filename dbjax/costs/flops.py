"""Counts the floating-point operations of one HLO instruction.

- A dot counts 2 * outputs * contracted.
- A convolution counts 2 for each kernel tap that falls on an input, as opposed to padding or the
  gaps between dilated inputs.
- Arithmetic, comparisons, selections and transcendental functions, of any type, real or complex,
  count 1 per output.
- An instruction that applies a computation (reduce, scatter, ...) counts the operations of the
  computation times the number of applications, which for a reduce is one per input.
- Moving and converting data counts 0. The additions inside an all-reduce are not counted.

Differs from XLA's cost analysis, which counts conversions and the additions of an all-reduce
(1 per output of either), counts one application less per output of a reduce, counts
transcendental functions separately, and counts the body of a loop only once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from dbjax.costs.hlo import ARITHMETIC, FREE, MOVING, Computation, Instruction, Shape


@dataclasses.dataclass(frozen=True)
class Window:
    """How a window or a convolution kernel moves over an input along one axis.

    Attributes:
      size: the number of elements of the window.
      stride: the distance between the windows of neighbouring outputs.
      low_padding: the padding before the input.
      input_dilation: the distance between neighbouring inputs.
      dilation: the distance between neighbouring elements of the window.
    """

    size: int = 1
    stride: int = 1
    low_padding: int = 0
    input_dilation: int = 1
    dilation: int = 1

    def taps(self, inputs: int, outputs: int) -> int:
        """Counts the pairs of an output and a window element that fall on an input."""
        starts = range(0, outputs * self.stride, self.stride)
        offsets = range(0, self.size * self.dilation, self.dilation)
        few, many = sorted((starts, offsets), key=len)
        return sum(self._hits(np.asarray(many) + each, inputs) for each in few)

    def _hits(self, at: np.ndarray, inputs: int) -> int:
        at = at - self.low_padding
        inside = (at >= 0) & (at <= (inputs - 1) * self.input_dilation)
        return int((inside & (at % self.input_dilation == 0)).sum())


def convolution_flops(instruction: Instruction) -> float:
    """Counts a multiplication and an addition for each tap that falls on an input.

    A tap falls on an input if it does so along every axis, so the counts of the axes multiply.

    Raises:
      ValueError: the attribute `dim_labels` cannot be parsed.
    """
    images, kernel = (operand.shape.dims for operand in instruction.operands)
    outputs = instruction.shape.dims
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attributes["dim_labels"])
    if labels is None:
        raise ValueError(f"unknown form of dim_labels, in: {instruction.line}")
    of_image, of_kernel, of_output = labels.groups()
    hits = math.prod(
        window_along(instruction, int(axis)).taps(
            images[of_image.index(axis)], outputs[of_output.index(axis)]
        )
        for axis in of_kernel
        if axis.isdigit()
    )
    channels = kernel[of_kernel.index("i")]  # input channels of one group
    return 2.0 * hits * channels * math.prod(outputs[of_output.index(axis)] for axis in "bf")


def taps(instruction: Instruction, inputs: Shape, outputs: Shape) -> int:
    """Counts the pairs of an output and an input in its window, over all axes of the window."""
    return math.prod(
        window_along(instruction, axis).taps(*lengths)
        for axis, lengths in enumerate(zip(inputs.dims, outputs.dims, strict=True))
    )


def window_along(instruction: Instruction, axis: int) -> Window:
    """Returns an instruction's window along one axis."""
    fields = dict(re.findall(r"(\w+)=([\w\-]+)", instruction.attributes["window"]))

    def along(key: str, default: int) -> int:
        return int(fields[key].split("x")[axis].split("_")[0]) if key in fields else default

    return Window(
        size=along("size", 1),
        stride=along("stride", 1),
        low_padding=along("pad", 0),
        input_dilation=along("lhs_dilate", 1),
        dilation=along("rhs_dilate", 1),
    )


_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[((?:"?\d+"?,?)+)\]')


def flops(instruction: Instruction) -> float | None:
    """Returns the FLOPs of an instruction on one device.

    Returns None if the opcode or the custom call is not known.
    """
    opcode = instruction.opcode
    if opcode in ARITHMETIC:
        return float(instruction.shape.elements)
    if opcode in FREE | MOVING or opcode.endswith("-done"):
        return 0.0
    return _RULES[opcode](instruction) if opcode in _RULES else None


def _dot(instruction: Instruction) -> float:
    left = instruction.operands[0].shape.dims
    contracted = (left[axis] for axis in instruction.ints("lhs_contracting_dims"))
    return 2.0 * instruction.shape.elements * math.prod(contracted)


def _custom_call(instruction: Instruction) -> float | None:
    """Counts a matrix product in a library, whose configuration says which axes it contracts.

    Returns None for other custom calls.
    """
    found = _GEMM_CONTRACTED.search(instruction.attributes.get("backend_config", ""))
    if found is None:
        return None
    left = instruction.operands[0].shape.dims
    contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", found[1]))
    result = instruction.shape.parts[0] if instruction.shape.parts else instruction.shape
    return 2.0 * result.elements * contracted


def _applied(instruction: Instruction, attribute: str = "to_apply") -> float:
    """Counts the operations of one application of a scalar computation."""
    return sum(_inside(computation) or 0.0 for computation in instruction.called[attribute])


def _inside(computation: Computation) -> float | None:
    found = [flops(instruction) for instruction in computation.instructions]
    return None if None in found else float(sum(filter(None, found)))


def _fusion(instruction: Instruction) -> float | None:
    (inner,) = instruction.called["calls"]
    return _inside(inner)


def _call(instruction: Instruction) -> float | None:
    (inner,) = instruction.called["to_apply"]
    return _inside(inner)


def _reduce(instruction: Instruction) -> float:
    return _applied(instruction) * instruction.operands[0].shape.elements


def _per_output(instruction: Instruction) -> float:
    shape = instruction.shape
    return _applied(instruction) * (shape.parts[0] if shape.parts else shape).elements


def _reduce_window(instruction: Instruction) -> float:
    shape = instruction.shape
    inputs, outputs = instruction.operands[0].shape, shape.parts[0] if shape.parts else shape
    return _applied(instruction) * taps(instruction, inputs, outputs)


def _scatter(instruction: Instruction) -> float:
    return _applied(instruction) * instruction.operands[-1].shape.elements


def _select_and_scatter(instruction: Instruction) -> float:
    inputs, sources = (operand.shape for operand in instruction.operands[:2])
    selections = _applied(instruction, "select") * taps(instruction, inputs, sources)
    return selections + _applied(instruction, "scatter") * sources.elements


def _sort(instruction: Instruction) -> float:
    """Counts a comparison for each element and each halving of the sorted axis."""
    keys = instruction.operands[0].shape
    (axis,) = instruction.ints("dimensions")
    return _applied(instruction) * keys.elements * math.ceil(math.log2(max(2, keys.dims[axis])))


def _fft(instruction: Instruction) -> float:
    """Counts 5 n log2 n for a complex transform of n (FFTW's convention), half for a real one."""
    lengths = instruction.ints("fft_length")
    largest = max(instruction.operands[0].shape.elements, instruction.shape.elements)
    real = 0.5 if "R" in instruction.attributes["fft_type"] else 1.0
    return 5 * real * largest * math.log2(math.prod(lengths))


def _cholesky(instruction: Instruction) -> float:
    return instruction.shape.elements * instruction.shape.dims[-1] / 3


def _triangular_solve(instruction: Instruction) -> float:
    return float(instruction.shape.elements * instruction.operands[0].shape.dims[-1])


_RULES: dict[str, Callable[[Instruction], float | None]] = {
    "dot": _dot,
    "convolution": convolution_flops,
    "custom-call": _custom_call,
    "fusion": _fusion,
    "call": _call,
    "reduce": _reduce,
    "map": _per_output,
    "reduce-window": _reduce_window,
    "scatter": _scatter,
    "select-and-scatter": _select_and_scatter,
    "sort": _sort,
    "fft": _fft,
    "cholesky": _cholesky,
    "triangular-solve": _triangular_solve,
}
