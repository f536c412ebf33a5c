"""Times to an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dbjax.trace import Row


def time_to(rows: Sequence[Row], accuracy: float) -> float:
    """When hold-out accuracy first reaches `accuracy`, in seconds; infinite: never.

    Between the two evaluations around it, by a straight line.
    """
    previous: Row | None = None
    for row in rows:
        if row["test_accuracy"] >= accuracy:
            if previous is None or row["test_accuracy"] == previous["test_accuracy"]:
                return float(row["time_s"])
            share = (accuracy - previous["test_accuracy"]) / (
                row["test_accuracy"] - previous["test_accuracy"]
            )
            return float(previous["time_s"] + share * (row["time_s"] - previous["time_s"]))
        previous = row
    return math.inf
