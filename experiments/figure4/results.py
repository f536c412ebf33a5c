"""Numbers of Figure 4: rows of the CSV file, times to an accuracy, order of the methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from dbjax.models import PAPER
from experiments.accuracy import time_to
from experiments.figure4.methods import METHODS
from experiments.figure4.options import parameters
from experiments.report.read import Run

Runs = Mapping[str, Sequence[Run]]  # key of a method -> one run per seed


def label(key: str, runs: Sequence[Run]) -> str:
    """Returns the label of a method as in the paper, with its number of replicas."""
    return METHODS[key].label(runs[0].config["options"]["replicas"])


def rows(runs: Runs) -> list[dict[str, Any]]:
    """Returns one row per evaluation."""
    return [
        {
            "method": label(key, mine),
            "machines": METHODS[key].machines(run.config["options"]["replicas"]),
            "seed": run.config["seed"],
            "time_s": row["time_s"],
            "time_h": row["time_s"] / 3600,
            "clock_of_parameters": PAPER.parameters,
            "computed_parameters": parameters(ml_collections.ConfigDict(run.config)),
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
    """Returns the hold-out accuracy of a run at its end."""
    return float(run.rows[-1]["test_accuracy"])


def stated(runs: Runs) -> float:
    """Returns the final hold-out accuracy of SGD [1], averaged over seeds."""
    return statistics.fmean(map(final, runs["sgd"]))


def times(runs: Runs) -> dict[str, list[float]]:
    """Returns when each run reaches the final accuracy of SGD [1] with the same seed.

    Returns:
      Key of a method -> seconds for each seed; infinite for a run that never reaches it.
    """
    targets = [final(run) for run in runs["sgd"]]
    return {
        key: [time_to(run.rows, target) for run, target in zip(mine, targets, strict=True)]
        for key, mine in runs.items()
    }


def order(runs: Runs) -> str:
    """Returns the methods ordered by time to the accuracy of SGD, and by final accuracy."""
    found = times(runs)
    last = {key: statistics.median(map(final, mine)) for key, mine in runs.items()}
    sooner = ", ".join(f"{label(key, runs[key])} {seconds(found[key])}" for key in by_time(found))
    better = ", ".join(
        f"{label(key, runs[key])} {last[key]:.1%}" for key in sorted(last, key=lambda k: -last[k])
    )
    return f"By time to the accuracy of SGD [1]: {sooner}.\n\nBy final accuracy: {better}."


def by_time(found: Mapping[str, Sequence[float]]) -> list[str]:
    """Returns the keys of `times`, ordered by the median over seeds, fastest first."""
    return sorted(found, key=lambda key: (statistics.median(found[key]), min(found[key])))


def provenance(runs: Runs) -> str:
    """Returns which runs ended early, and the commits that made the runs."""
    end_s = max(run.end_s for mine in runs.values() for run in mine)
    ended = [
        f"{label(key, mine)} with seed {run.config['seed']} ended at {run.end_s:.1f} s"
        for key, mine in runs.items()
        for run in mine
        if run.end_s < end_s
    ]
    commits = sorted({_short(run.about["commit"]) for mine in runs.values() for run in mine})
    return "; ".join([*ended, f"runs made at commit {', '.join(commits)}"])


def _short(commit: str | None) -> str:
    """Shortens a commit hash; a plus after it marks uncommitted changes."""
    return f"{commit[:10]}{commit[40:]}" if commit else "unknown"


def seconds(times_s: Sequence[float]) -> str:
    """Formats the median over seeds, with the lowest and the highest."""
    middle, low, high = statistics.median(times_s), min(times_s), max(times_s)
    if math.isinf(middle):
        return "never" if math.isinf(low) else f"never (once {low:.1f} s)"
    return f"{middle:.1f} s ({low:.1f} to {'never' if math.isinf(high) else f'{high:.1f}'})"
