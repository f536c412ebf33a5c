"""A data set in memory: what to train on, and what to hold out."""

from __future__ import annotations

import dataclasses

from dbjax.data.examples import Examples


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set, most often for classification.

    Attributes:
      train: training examples; gathers `Labelled` mini-batches.
      test: hold-out examples.
      num_classes: labels are 0 .. num_classes - 1; or how many numbers a label of a
        regression has.
      input_shape: of one example's inputs.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    input_shape: tuple[int, ...]
