"""What a sweep leaves: the best config as a file, a CSV and a table of all trials, pictures."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import math
import pprint
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import optuna
import rich.table
from optuna.trial import FrozenTrial, TrialState

from dbjax.files import plain, write_text
from experiments import build, plots
from experiments.sweep import pictures
from experiments.sweep.plan import Plan

_SHOWN = 10
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "left running",
}


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep that has ended, or was interrupted.

    Attributes:
      best: the config of the best trial; None: none was complete.
      rows: of all trials, in the order of their numbers.
      interrupted: by SIGINT or SIGTERM; None: all trials have ended.
      label: what was tuned.
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
        """Of the best trial."""
        return float(self.best_row["value"]) if self.best_row else math.nan

    @property
    def caption(self) -> str:
        """How many trials and runs, what was drawn how."""
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
    """What there is so far."""
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
    """Of the table and the CSV; the value of a pruned trial is the one it had reached."""
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


def write(result: SweepResult, workdir: Path) -> None:
    """Everything but the trials' own folders."""
    write_text(workdir / "trials.csv", _csv(result))
    if result.best is None:
        return
    write_text(workdir / "best.py", _config_file(result, workdir))
    for name, figure in pictures.figures(result).items():
        plots.save(figure, workdir / f"{name}.png")


def _csv(result: SweepResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = {"value": result.plan.metric, "deviation": f"{result.plan.metric}_deviation"}
    writer.writerow([names.get(name, name) for name in result.rows[0]])
    for row in result.rows:
        writer.writerow("" if v != v else v for v in row.values())
    return text.getvalue()


def _config_file(result: SweepResult, workdir: Path) -> str:
    assert result.best is not None
    assert result.best_row is not None
    chosen = {name: result.best_row[name] for name in result.plan.space.space}
    fields = plain(result.best.to_dict(), infinity="inf")
    return (
        f'"""The best of {len(result.rows)} trials of {result.label}: '
        f"{result.plan.words} {result.value:.6g} (trial {result.best_row['trial']}).\n\n"
        f"python -m experiments.run --config={workdir / 'best.py'} --workdir=runs/best\n"
        f'"""\n\nimport ml_collections\n\nfrom experiments.saved import restored\n\n'
        f"VARIANTS = ()\n"
        f"CHOSEN = {pprint.pformat(chosen, width=95, sort_dicts=False)}\n"
        f"FIELDS = {pprint.pformat(fields, width=95, sort_dicts=False)}  # all of them\n\n\n"
        f'def get_config(variant: str = "") -> ml_collections.ConfigDict:\n'
        f"    return restored(FIELDS, __file__)\n"
    )


def table(result: SweepResult) -> rich.table.Table:
    """The best trials; errors, if there were any."""
    fields = list(result.plan.space.space)
    sign = 1 if result.plan.direction == "minimize" else -1
    ranked = sorted(
        (row for row in result.rows if row["state"] == "complete"),
        key=lambda row: (sign * row["value"], row["trial"]),
    )
    failed = [row for row in result.rows if row["error"]]
    title = f"best of {len(result.rows)} trials by {result.plan.words}"
    drawn = rich.table.Table(title=title, title_justify="left", caption=result.caption)
    for column in ("trial", result.plan.words, *_short(fields), "wall s"):
        drawn.add_column(column, justify="right", overflow="fold")
    for row in ranked[:_SHOWN]:
        cells = [_cell(row[name]) for name in fields]
        drawn.add_row(str(row["trial"]), _value(row), *cells, f"{row['wall_s']:.1f}")
    for row in failed[:3]:
        cells = [_cell(row[name]) for name in fields]
        drawn.add_row(str(row["trial"]), f"failed: {row['error'][:80]}", *cells)
    return drawn


def _short(fields: Sequence[str]) -> list[str]:
    """Without their groups, where that is clear."""
    last = [name.rpartition(".")[2] for name in fields]
    return [one if last.count(one) == 1 else name for name, one in zip(fields, last, strict=True)]


def _value(row: dict[str, Any]) -> str:
    deviation = row["deviation"]
    return f"{row['value']:.4g}" + ("" if deviation != deviation else f" ± {deviation:.2g}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def went_wrong(rows: Sequence[dict[str, Any]]) -> str:
    """How many trials have each kind of warning, in a line; empty: none has any."""
    kinds = collections.Counter(
        k for row in rows if row["warnings"] for k in row["warnings"].split(", ")
    )
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    return f"of {len(rows)} trials, {counts} (warnings in trials.csv)" if kinds else ""


def errors(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong in trials, each once."""
    return list(dict.fromkeys(row["error"] for row in rows if row["error"]))
