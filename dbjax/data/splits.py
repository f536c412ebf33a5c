"""A data set in memory: what to train on, and what to hold out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.arguments import require_labels
from dbjax.data.examples import ArrayExamples, Examples, Frames, labels_in


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set, most often for classification.

    Attributes:
      train: training examples; gathers `Labelled` mini-batches.
      test: hold-out examples.
      num_classes: labels are 0 .. num_classes - 1; or how many numbers a label of a
        regression has.
      input_shape: of one example's inputs.

    Raises:
      ValueError: integer labels are not 0 .. num_classes - 1. (What is no `ArrayExamples` and no `Frames`
        is not looked at.)
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            labels = _labels(getattr(self, split))
            if labels is not None and labels.dtype.kind in "iu":
                require_labels(f"data {self.name!r}, split {split!r}", labels, self.num_classes)


def _labels(examples: Examples) -> Any:
    """All labels; None where they cannot be had at once."""
    if isinstance(examples, Frames):
        return examples.labels
    labels = labels_in(examples.tree) if isinstance(examples, ArrayExamples) else None
    return None if labels is None else np.asarray(labels)
