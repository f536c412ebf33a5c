"""Rows of Figure 4, times to an accuracy, and the paper's sentences beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dbjax.trace import Row
from experiments.claims import Claim, verdict
from experiments.demo import time_to


class Run(NamedTuple):
    """One run of one method.

    Attributes:
      key, label, machines: of the method.
      seed: from which those of parameters, data and delays follow.
      evaluations: rows with `time_s`, `train_accuracy` and `test_accuracy`.
      summary: of the run.
    """

    key: str
    label: str
    machines: int
    seed: int
    evaluations: Sequence[Row]
    summary: Mapping[str, Any]


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.key, []).append(run)
    return found


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each evaluation."""
    return [
        {
            "method": run.label,
            "machines": run.machines,
            "seed": run.seed,
            "time_s": row["time_s"],
            "updates": row["updates"],
            "train_accuracy": row["train_accuracy"],
            "test_accuracy": row["test_accuracy"],
        }
        for run in runs
        for row in run.evaluations
    ]


def final(run: Run) -> float:
    return float(run.evaluations[-1]["test_accuracy"])


def stated(runs: Sequence[Run]) -> float:
    """Hold-out accuracy that SGD [1] has at the end, in the mean over seeds."""
    return statistics.fmean(final(run) for run in runs if run.key == "sgd")


def times(runs: Sequence[Run], accuracy: float) -> dict[str, list[float]]:
    """When each seed of each method first has that accuracy, s; infinite: never."""
    return {
        key: [time_to(run.evaluations, accuracy) for run in mine]
        for key, mine in by_method(runs).items()
    }


def sooner(runs: Sequence[Run], key: str) -> list[float]:
    """How many times sooner than the end a method has SGD's accuracy at the end, by seed."""
    end_s = max(run.evaluations[-1]["time_s"] for run in runs)
    return [end_s / t for t in times(runs, stated(runs))[key]]


def claims(runs: Sequence[Run]) -> list[Claim]:
    """What section 5 says of Figure 4."""
    found, accuracy = times(runs, stated(runs)), stated(runs)
    labels = {run.key: run.label for run in runs}

    def faster(sentence: str, quick: str, slow: str) -> Claim:
        ours = " and ".join(f"{labels[k]} {seconds(found[k])}" for k in (quick, slow))
        pairs = zip(found[quick], found[slow], strict=True)
        return Claim(sentence, f"{ours} to {accuracy:.1%}", verdict([q < s for q, s in pairs]))

    fastest = found["downpour_adagrad_200"]
    others = [k for k in found if k not in ("downpour_adagrad_200",)]
    return [
        faster("Downpour [20] is clearly faster than SGD [1]", "downpour", "sgd"),
        faster(
            "with Adagrad, Downpour [20] is modestly faster again", "downpour_adagrad", "downpour"
        ),
        faster(
            "Sandblaster [2000] is considerably faster than these",
            "sandblaster",
            "downpour_adagrad",
        ),
        Claim(
            "Downpour + Adagrad [200] is the fastest of all",
            "; ".join(f"{labels[k]} {seconds(found[k])}" for k in found),
            verdict(
                [
                    all(fastest[i] < found[k][i] for k in others if k != "gpu")
                    for i in range(len(fastest))
                ]
            ),
        ),
        faster("with 2000 replicas Sandblaster beats the GPU", "sandblaster", "gpu"),
        faster("Downpour + Adagrad [200] beats the GPU", "downpour_adagrad_200", "gpu"),
    ]


def seconds(times_s: Sequence[float]) -> str:
    """The median of seeds, lowest and highest."""
    middle, low, high = statistics.median(times_s), min(times_s), max(times_s)
    if math.isinf(middle):
        return "never"
    return f"{middle:.0f} s ({low:.0f} to {high:.0f})"
