"""The accuracy of always guessing the most frequent class of a hold-out set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dbjax.arguments import require_fields

_DEVIATIONS = 2.0  # standard deviations: by chance 1 measured accuracy in 40 lies higher


@dataclasses.dataclass(frozen=True)
class MostFrequent:
    """The most frequent class of a hold-out set: the baseline that needs no training.

    A run whose accuracy is no better than this baseline has learned nothing.

    Attributes:
      share: the fraction of examples in the most frequent class, above 0 and at most 1.
      examples: the number of examples that accuracy is measured on.
      metric: the key under which `Task.evaluate` returns the accuracy on those examples.

    Raises:
      ValueError: `share` or `examples` is out of range.
    """

    share: float
    examples: int
    metric: str = "test_accuracy"

    def __post_init__(self) -> None:
        require_fields("MostFrequent", self)
        if not 0 < self.share <= 1:
            raise ValueError(f"MostFrequent.share={self.share} must be above 0 and at most 1")
        if self.examples < 1:
            raise ValueError(f"MostFrequent.examples={self.examples} must be at least 1")

    @classmethod
    def of(cls, labels: Any, metric: str = "test_accuracy") -> MostFrequent:
        """Counts the classes of the examples that `metric` is measured on.

        Args:
          labels: class numbers, an integer or bool array of any shape.
          metric: the key of the accuracy in the metrics of `Task.evaluate`.

        Raises:
          ValueError: there are no labels, they are not integers, or they are one-hot.
        """
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biu" or not labels.size:
            raise ValueError(
                f"MostFrequent.of: labels are {labels.dtype}{list(labels.shape)}; give class "
                "numbers, at least one"
            )
        if _is_one_hot(labels):
            raise ValueError(
                "MostFrequent.of: labels are one-hot (every row is a single 1 among zeros); give "
                "class numbers: labels.argmax(1)"
            )
        _, counts = np.unique(labels, return_counts=True)
        return cls(float(counts.max() / counts.sum()), int(counts.sum()), metric)

    @property
    def bound(self) -> float:
        """The highest accuracy that noise alone could give a constant guess.

        This is `share` plus two standard deviations of an accuracy measured on `examples` examples,
        but at most half-way from `share` to 1: however few examples there are, a perfect run is
        above the bound.
        """
        deviation = math.sqrt(self.share * (1 - self.share) / self.examples)
        return self.share + min(_DEVIATIONS * deviation, (1 - self.share) / 2)

    @property
    def message(self) -> str:
        """The baseline as a clause to append to an accuracy in a message."""
        return f"and {self.share:.1%} of {self.examples:,} examples are of the most frequent class"

    def explains(self, accuracy: float) -> bool:
        """Whether an accuracy is no better than a constant guess, up to noise; False for NaN."""
        return accuracy <= self.bound


def _is_one_hot(labels: np.ndarray[Any, Any]) -> bool:
    if labels.ndim != 2 or labels.shape[1] < 2:
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, 1) == 1).all())
