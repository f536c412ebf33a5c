"""Rows of Figure 4, times to an accuracy, and the paper's sentences beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accuracy import time_to
from experiments.claims import Claim, verdict
from experiments.figure4.methods import METHODS
from experiments.report.read import Run

Runs = Mapping[str, Sequence[Run]]  # of each method, by its key: one for each seed


def label(key: str, runs: Sequence[Run]) -> str:
    """As in the paper: with the number of replicas."""
    return METHODS[key].label(runs[0].config["options"]["replicas"])


def rows(runs: Runs) -> list[dict[str, Any]]:
    """One for each evaluation."""
    return [
        {
            "method": label(key, mine),
            "machines": METHODS[key].machines(run.config["options"]["replicas"]),
            "seed": run.config["seed"],
            "time_s": row["time_s"],
            "time_h": row["time_s"] / 3600,
            "updates": row["updates"],
            "examples": row["examples"],
            "train_accuracy": row["train_accuracy"],
            "test_accuracy": row["test_accuracy"],
        }
        for key, mine in runs.items()
        for run in mine
        for row in run.rows
    ]


def final(run: Run) -> float:
    return float(run.rows[-1]["test_accuracy"])


def stated(runs: Runs) -> float:
    """Hold-out accuracy that SGD [1] has at the end, in the mean over seeds."""
    return statistics.fmean(map(final, runs["sgd"]))


def times(runs: Sequence[Run], accuracy: float) -> list[float]:
    """When each seed first has that accuracy, s; infinite: never."""
    return [time_to(run.rows, accuracy) for run in runs]


def claims(runs: Runs) -> list[Claim]:
    """What section 5 says of Figure 4, at the accuracy that SGD [1] has at the end."""
    accuracy = stated(runs)
    found = {key: times(mine, accuracy) for key, mine in runs.items()}

    def sooner(sentence: str, quick: str, *slow: str, by: float = 1.0) -> Claim:
        ours = "; ".join(f"{label(k, runs[k])} {seconds(found[k])}" for k in (quick, *slow))
        pairs = [pair for k in slow for pair in zip(found[quick], found[k], strict=True)]
        return Claim(sentence, ours, verdict([by * q < s for q, s in pairs]))

    fastest = "downpour_adagrad_200"
    return [
        sooner("Downpour [20] is clearly faster than SGD [1]", "downpour", "sgd"),
        sooner("with Adagrad [20], modestly faster again", "downpour_adagrad", "downpour"),
        sooner("Sandblaster [2000] is considerably faster", "sandblaster", "downpour_adagrad"),
        sooner(
            "Downpour + Adagrad [200] is the fastest of all",
            fastest,
            *(key for key in found if key not in (fastest, "gpu")),
        ),
        sooner("with enough CPUs Sandblaster beats the GPU", "sandblaster", "gpu"),
        sooner("with enough CPUs Downpour + Adagrad [200] beats the GPU", fastest, "gpu"),
        _rates(runs),
        sooner(
            "(our aim, not the paper's) Downpour + Adagrad [20] is 3 times sooner than SGD [1]",
            "downpour_adagrad",
            "sgd",
            by=3.0,
        ),
    ]


def order(runs: Runs) -> str:
    """The methods by time to SGD's accuracy, the soonest first."""
    accuracy = stated(runs)
    middle = {key: statistics.median(times(mine, accuracy)) for key, mine in runs.items()}
    return ", ".join(label(key, runs[key]) for key in sorted(middle, key=lambda k: middle[k]))


def _rates(runs: Runs) -> Claim:
    """Section 4.1."""
    gamma = runs["downpour_adagrad"][0].config["rule"]["gamma"]
    rate = runs["downpour"][0].config["rule"]["learning_rate"]
    return Claim(
        "gamma of Adagrad is larger, perhaps by an order of magnitude, than the best fixed rate",
        f"gamma {gamma:.3g}, rate {rate:.3g}: {gamma / rate:.2g} times",
        verdict([gamma > rate]),
    )


def seconds(times_s: Sequence[float]) -> str:
    """The median of seeds, lowest and highest."""
    middle, low, high = statistics.median(times_s), min(times_s), max(times_s)
    if math.isinf(middle):
        return "never" if math.isinf(low) else f"never (once {low:.1f} s)"
    return f"{middle:.1f} s ({low:.1f} to {'never' if math.isinf(high) else f'{high:.1f}'})"
