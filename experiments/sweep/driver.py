"""Runs the trials of a sweep in the order of their numbers, and records their outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, final

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from dbjax.signals import Interrupted
from experiments.sweep.plan import RUNGS, Plan
from experiments.sweep.pool import Pool
from experiments.sweep.trial import Outcome

_POLL_S = 0.2  # upper bound on the reaction time to Ctrl-C


class Watcher(Protocol):
    """Is notified when trials begin and end, for example to show progress."""

    def begun(self, number: int, drawn: dict[str, Any]) -> None:
        """Receives the number of a trial that begins, and the values drawn for its fields."""

    def ended(self, trial: FrozenTrial) -> None:
        """Receives a trial that is complete, pruned or failed."""


@final
class Driver:
    """Hands trials to the workers of a pool, and stores them in an Optuna study.

    Trials that were running when a sweep was interrupted are run again under their old numbers.
    """

    def __init__(
        self, plan: Plan, study: optuna.Study, folder: Path, pool: Pool, watcher: Watcher
    ) -> None:
        self._plan, self._study, self._folder = plan, study, folder
        self._pool, self._watcher = pool, watcher
        trials = study.get_trials()
        self._ended = {t.number: t for t in trials if t.state.is_finished()}
        self._left = {t.number: t for t in trials if not t.state.is_finished()}
        self._next = len(trials)
        self._running: dict[int, _Trial] = {}

    def run(self, count: int, interrupted: Interrupted) -> None:
        """Runs trials until the study has `count` of them, or until the sweep is interrupted."""
        while not interrupted.by:
            while self._pool.free and self._may_begin(count):
                self._begin()
            if not self._running:
                return
            for number, message in self._pool.messages(_POLL_S):
                if isinstance(message, Outcome):
                    self._end(number, message)
                else:
                    self._look(number, *message)

    def _may_begin(self, count: int) -> bool:
        """Whether a trial is left to begin, and all trials that it depends on have ended."""
        number = min(self._left, default=self._next)
        if number >= count and not self._left:
            return False
        return not self._plan.looks_back or all(k in self._ended for k in self._seen_by(number))

    def _seen_by(self, number: int) -> range:
        return range(number - self._plan.lag + 1)

    def _begin(self) -> None:
        number = min(self._left, default=self._next)
        left = self._left.pop(number, None)
        seen = self._seen_by(number) if self._plan.looks_back else range(0)
        asked = self._plan.asked(
            number, [self._ended[k] for k in seen], left.params if left else None
        )
        if left is None:
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=asked.params,
                    distributions=self._plan.space.distributions,
                )
            )
            self._next += 1
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            left = next(trial for trial in running if trial.number == number)
        self._running[number] = _Trial(self._study, left, asked)
        self._pool.give(number, self._plan.job(asked.params))
        self._watcher.begun(number, asked.params)

    def _look(self, number: int, k: int, value: float) -> None:
        """Handles the `k`-th evaluation of a running trial, and tells it whether to stop."""
        stop = self._running[number].look(k, value)
        if self._plan.space.pruner != "none":
            self._pool.answer(number, stop)

    def _end(self, number: int, outcome: Outcome) -> None:
        outcome.leave(self._folder / f"{number:04d}")
        trial = self._running.pop(number)
        for name, value in trial.noted(outcome).items():
            trial.stored.set_user_attr(name, value)
        if outcome.error:
            ended = self._study.tell(number, state=TrialState.FAIL)
        elif outcome.pruned:
            ended = self._study.tell(number, state=TrialState.PRUNED)
        else:
            ended = self._study.tell(number, outcome.value)
        self._ended[number] = ended
        self._watcher.ended(ended)


@final
class _Trial:
    """A running trial, both as stored in the study and as asked of its own in-memory study.

    The in-memory study (`Plan.asked`) holds only the earlier trials that this one depends on; it
    decides about pruning.
    """

    def __init__(self, study: optuna.Study, left: FrozenTrial, asked: optuna.Trial) -> None:
        self.stored, self._asked = optuna.Trial(study, left._trial_id), asked
        self._reported = set(left.intermediate_values)  # before an interruption

    def look(self, k: int, value: float) -> bool:
        """Reports the `k`-th evaluation, and returns whether to stop the trial."""
        self._asked.report(value, k)
        if k not in self._reported:
            self.stored.report(value, k)
        return self._asked.should_prune()

    def noted(self, outcome: Outcome) -> dict[str, Any]:
        """Returns the user attributes to store with the trial when it has ended."""
        found: dict[str, Any] = {"wall_s": outcome.wall_s}
        if outcome.error:
            found["error"] = outcome.error
        if outcome.warnings:
            found["warnings"] = list(outcome.warnings)
        if len(outcome.values) > 1:
            found["values"] = list(outcome.values)
        rungs = self._asked.study.get_trials(deepcopy=False)[-1].system_attrs
        kept = {k: v for k, v in rungs.items() if k != "fixed_params"}
        return found | ({RUNGS: kept} if kept else {})
