"""A data set in memory, split into training and hold-out examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.arguments import require_labels
from dbjax.data.examples import ArrayExamples, Examples, Frames, labels_in


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set for classification or regression.

    Attributes:
      name: the name used in messages.
      train: the training examples; mini-batches are `Labelled`.
      test: the hold-out examples.
      num_classes: the number of classes, whose labels are 0 .. num_classes - 1; for a regression,
        the number of targets per example.
      input_shape: the shape of one example's inputs.

    Raises:
      ValueError: an integer label is not in 0 .. num_classes - 1. Only the labels of
        `ArrayExamples` and `Frames` are checked.
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
    """All labels; None for examples that only `gather` can read."""
    if isinstance(examples, Frames):
        return examples.labels
    labels = labels_in(examples.tree) if isinstance(examples, ArrayExamples) else None
    return None if labels is None else np.asarray(labels)
