"""The result of a sweep: one row per trial, and the config of the best trial."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import ml_collections
import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments import build
from experiments.sweep.plan import Plan

_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "left running",
}


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of a sweep that has ended, or was interrupted.

    Attributes:
      plan: the plan of the sweep.
      study: the Optuna study that holds the trials.
      best: the config of the best complete trial, or None if no trial is complete.
      best_row: the row of that trial in `rows`, or None.
      rows: one row per trial, in the order of their numbers.
      interrupted: the name of the signal that interrupted the sweep ("SIGINT" or "SIGTERM"), or
        None if all trials have ended.
      label: a name for what was tuned, used in captions.
    """

    plan: Plan
    study: optuna.Study
    best: ml_collections.ConfigDict | None
    best_row: dict[str, Any] | None
    rows: list[dict[str, Any]]
    interrupted: str | None
    label: str

    @property
    def value(self) -> float:
        """The value of the best trial; NaN if no trial is complete."""
        return float(self.best_row["value"]) if self.best_row else math.nan

    @property
    def caption(self) -> str:
        """A line for figures: numbers of trials and runs, sampler, metric and duration."""
        states = [row["state"] for row in self.rows]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        space, config = self.plan.space, self.plan.config
        each = f"mean of {self.plan.runs} runs each" if self.plan.runs > 1 else "1 run each"
        until = (
            "" if config.until_s is None else f" after {config.until_s:g} {build.clock(config)} s"
        )
        return (
            f"{self.label}: {len(states)} trials ({counts}), {each}; {space.sampler} sampler, "
            f"seed {space.seed}; {self.plan.words}{until}"
        )


def found(plan: Plan, study: optuna.Study, interrupted: str | None, label: str) -> SweepResult:
    """Collects the result of a study, which may still be incomplete.

    Args:
      plan: the plan of the sweep.
      study: the study that holds its trials.
      interrupted: the name of the signal that interrupted the sweep, or None.
      label: a name for what was tuned.
    """
    trials = study.get_trials(deepcopy=False)
    rows = [_row(plan, trial) for trial in trials]
    complete = [t.number for t in trials if t.state == TrialState.COMPLETE]
    if not complete:
        return SweepResult(plan, study, None, None, rows, interrupted, label)
    sign = -1 if plan.direction == "minimize" else 1
    best = max(complete, key=lambda number: sign * rows[number]["value"])
    config = plan.config_of(trials[best].params)
    return SweepResult(plan, study, config, rows[best], rows, interrupted, label)


def _row(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    """Returns the row of a trial; a pruned trial has the value that it had reached."""
    values = trial.user_attrs.get("values", ())
    return {
        "trial": trial.number,
        "state": _WORDS[trial.state],
        "value": math.nan if trial.values is None else trial.values[0],
        "deviation": statistics.stdev(values) if len(values) > 1 else math.nan,
        **{name: v.value(trial.params[name]) for name, v in plan.space.space.items()},
        "wall_s": trial.user_attrs.get("wall_s", math.nan),
        "error": trial.user_attrs.get("error", ""),
        "warnings": ", ".join(trial.user_attrs.get("warnings", ())),
    }


def went_wrong(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a line with the number of trials per kind of warning; empty if there are none."""
    kinds = collections.Counter(
        k for row in rows if row["warnings"] for k in row["warnings"].split(", ")
    )
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    return f"of {len(rows)} trials, {counts} (warnings in trials.csv)" if kinds else ""


def errors(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the distinct error messages of the trials, in the order of their numbers."""
    return list(dict.fromkeys(row["error"] for row in rows if row["error"]))
