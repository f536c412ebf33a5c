"""The time to reach an accuracy, and detection of runs that learned nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dbjax.data import MostFrequent
from dbjax.runtime.trace import Row
from experiments.report.read import Run


def time_to(rows: Sequence[Row], accuracy: float) -> float:
    """Returns when hold-out accuracy first reaches `accuracy`, in seconds of the run's clock.

    The time is interpolated linearly between the last evaluation below `accuracy` and the first
    one that reaches it.

    Args:
      rows: the evaluations of a run in order.
      accuracy: the target, from 0 to 1.

    Returns:
      Seconds; infinity if the run never reaches the target.
    """
    previous: Row | None = None
    for row in rows:
        if "test_accuracy" not in row:  # the evaluation failed
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
    """Describes the runs that end no better than always guessing the most frequent class.

    Args:
      label: the name of the method in the descriptions.
      runs: runs of that method that differ in their seeds.

    Returns:
      One clause for each such run, such as "SGD of seed 1 has 30.0%, and 30.0% of 100 examples
      are of the most frequent class".
    """
    found = []
    for run in runs:
        known, accuracy = run.summary.get("most_frequent_class"), run.rows[-1]["test_accuracy"]
        guess = MostFrequent(**known) if known else None
        if guess is not None and guess.explains(accuracy):
            seed = run.config["seed"]
            found.append(f"{label} of seed {seed} has {accuracy:.1%}, {guess.message}")
    return found
