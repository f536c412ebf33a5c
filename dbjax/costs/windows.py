"""Operations of what goes over an input with a window: only taps that fall on inputs count."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from dbjax.costs.hlo import Instruction
from dbjax.costs.shapes import Shape


@dataclasses.dataclass(frozen=True)
class Window:
    """How a window, or a kernel, goes over an input along one axis."""

    size: int = 1
    stride: int = 1
    low_padding: int = 0
    input_dilation: int = 1
    dilation: int = 1

    def taps(self, inputs: int, outputs: int) -> int:
        """Pairs of an output and a window's element that meet an input."""
        starts = range(0, outputs * self.stride, self.stride)
        offsets = range(0, self.size * self.dilation, self.dilation)
        few, many = sorted((starts, offsets), key=len)
        return sum(self._hits(np.asarray(many) + each, inputs) for each in few)

    def _hits(self, at: np.ndarray, inputs: int) -> int:
        at = at - self.low_padding
        inside = (at >= 0) & (at <= (inputs - 1) * self.input_dilation)
        return int((inside & (at % self.input_dilation == 0)).sum())


def convolution_flops(instruction: Instruction) -> float:
    """A multiplication and an addition for each tap on an input.

    A tap is on an input if it is so along every axis: the axes' counts multiply.
    """
    images, kernel = (operand.shape.dims for operand in instruction.operands)
    outputs = instruction.shape.dims
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attributes["dim_labels"])
    if labels is None:
        raise ValueError(f"not a form of dim_labels, in: {instruction.line}")
    of_image, of_kernel, of_output = labels.groups()
    hits = math.prod(
        window_along(instruction, int(axis)).taps(
            images[of_image.index(axis)], outputs[of_output.index(axis)]
        )
        for axis in of_kernel
        if axis.isdigit()
    )
    channels = kernel[of_kernel.index("i")]  # of one group
    return 2.0 * hits * channels * math.prod(outputs[of_output.index(axis)] for axis in "bf")


def taps(instruction: Instruction, inputs: Shape, outputs: Shape) -> int:
    """Pairs of an output and an input in its window, of a window over all axes."""
    return math.prod(
        window_along(instruction, axis).taps(*lengths)
        for axis, lengths in enumerate(zip(inputs.dims, outputs.dims, strict=True))
    )


def window_along(instruction: Instruction, axis: int) -> Window:
    """Of an instruction's windows, the one along an axis."""
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
