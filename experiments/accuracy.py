"""Times to an accuracy, and accuracies that show nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dbjax.data import MostFrequent
from dbjax.runtime.trace import Row
from experiments.report.read import Run


def time_to(rows: Sequence[Row], accuracy: float) -> float:
    """When hold-out accuracy first reaches `accuracy`, in seconds; infinite: never.

    Between the two evaluations around it, by a straight line.
    """
    previous: Row | None = None
    for row in rows:
        if "test_accuracy" not in row:  # that evaluation failed
            continue
        if row["test_accuracy"] >= accuracy:
            if previous is None or row["test_accuracy"] == previous["test_accuracy"]:
                return float(row["time_s"])
            share = (accuracy - previous["test_accuracy"]) / (
                row["test_accuracy"] - previous["test_accuracy"]
            )
            return float(previous["time_s"] + share * (row["time_s"] - previous["time_s"]))
        previous = row
    return math.inf


def guessing(label: str, runs: Sequence[Run]) -> list[str]:
    """Those of a method's runs that end no better than the most frequent class, in words."""
    found = []
    for run in runs:
        known, accuracy = run.summary.get("most_frequent_class"), run.rows[-1]["test_accuracy"]
        guess = MostFrequent(**known) if known else None
        if guess is not None and guess.explains(accuracy):
            found.append(f"{label} of seed {run.config['seed']} has {accuracy:.1%}, {guess.said}")
    return found
