"""Progress of a sweep: a bar on a terminal, otherwise one log line per trial."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, final

import optuna
import rich.progress
from optuna.trial import FrozenTrial, TrialState

from experiments.progress import bar
from experiments.sweep.driver import Watcher
from experiments.sweep.plan import Plan


@final
class Log:
    """Logs one line for each trial that ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def begun(self, number: int, drawn: dict[str, Any]) -> None:
        pass

    def ended(self, trial: FrozenTrial) -> None:
        fields = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        logging.getLogger("dbjax").info(
            "trial %d of %d: %s (%s)",
            trial.number,
            self._plan.space.count,
            _said(trial, self._plan.words),
            fields,
        )


@final
class Bar:
    """Shows a progress bar, with the best value so far and the running trials."""

    def __init__(self, bar: rich.progress.Progress, plan: Plan, study: optuna.Study) -> None:
        ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        self._bar, self._plan, self._running = bar, plan, set[int]()
        self._states = [trial.state for trial in ended]
        self._best = max((t for t in ended if _complete(t)), key=self._worth, default=None)
        self._task = bar.add_task("sweep", total=plan.space.count, state="")
        self._show()

    def begun(self, number: int, drawn: dict[str, Any]) -> None:
        self._running.add(number)
        self._show()

    def ended(self, trial: FrozenTrial) -> None:
        self._running.discard(trial.number)
        self._states.append(trial.state)
        if _complete(trial):
            self._best = max((t for t in (self._best, trial) if t), key=self._worth)
        self._show()

    def _worth(self, trial: FrozenTrial) -> float:
        assert trial.value is not None
        return -trial.value if self._plan.direction == "minimize" else trial.value

    def _show(self) -> None:
        words = []
        if self._best is not None:
            words.append(f"best {self._best.value:.4g} (trial {self._best.number})")
        for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
            if count := self._states.count(state):
                words.append(f"{count} {word}")
        if self._running:
            words.append(f"running {', '.join(map(str, sorted(self._running)))}")
        self._bar.update(self._task, completed=len(self._states), state="; ".join(words))


@contextlib.contextmanager
def shown(plan: Plan, study: optuna.Study) -> Iterator[Watcher]:
    """Yields the watcher that shows the progress of a sweep, for the `Driver`."""
    if not sys.stderr.isatty():
        yield Log(plan)
        return
    with bar("{task.completed} of {task.total} trials") as drawn:
        yield Bar(drawn, plan, study)


def _complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _said(trial: FrozenTrial, words: str) -> str:
    if trial.state == TrialState.FAIL:
        return f"failed, {trial.user_attrs['error']}"
    pruned = "pruned at " if trial.state == TrialState.PRUNED else ""
    return f"{pruned}{words} {trial.value:.4g}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
