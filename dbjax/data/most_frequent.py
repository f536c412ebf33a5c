"""What a constant guess gets right of a hold-out set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dbjax.arguments import require_fields

_DEVIATIONS = 2.0  # of an accuracy measured on so many examples: 1 of 40 is above by chance


@dataclasses.dataclass(frozen=True)
class MostFrequent:
    """The most frequent class of a hold-out set: always saying it needs no training.

    Attributes:
      share: of the examples that have it, above 0 and at most 1.
      examples: that the accuracy is measured on.
      metric: the accuracy, as `Task.evaluate` calls it: a share of the same examples.
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
        """Counts integer labels, of any shape, that `metric` is measured on."""
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biu" or not labels.size:
            raise ValueError(
                f"MostFrequent.of: labels are {labels.dtype}{list(labels.shape)}; give the numbers "
                "of classes, at least one"
            )
        if _is_one_hot(labels):
            raise ValueError(
                "MostFrequent.of: every row of labels has a single 1, and zeros; give the numbers "
                "of classes: labels.argmax(1)"
            )
        _, counts = np.unique(labels, return_counts=True)
        return cls(float(counts.max() / counts.sum()), int(counts.sum()), metric)

    @property
    def bound(self) -> float:
        """The accuracy up to which a run is no better than that guess, as far as one can tell.

        Two standard deviations of a share of so many examples above it; at most half of what there
        is above it, so that few examples never make a perfect run look bad.
        """
        deviation = math.sqrt(self.share * (1 - self.share) / self.examples)
        return self.share + min(_DEVIATIONS * deviation, (1 - self.share) / 2)

    @property
    def said(self) -> str:
        """In words."""
        return f"and {self.share:.1%} of {self.examples:,} examples are of the most frequent class"

    def explains(self, accuracy: float) -> bool:
        """Whether that guess is as accurate, but for noise. (NaN is no accuracy.)"""
        return accuracy <= self.bound


def _is_one_hot(labels: np.ndarray[Any, Any]) -> bool:
    if labels.ndim != 2 or labels.shape[1] < 2:
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, 1) == 1).all())
