"""The plan of a sweep, which makes each trial a function of its number and of earlier trials.

A trial depends only on trials that are at least `lag` numbers before it. The trials are therefore
the same however many run at once, whichever ends first, and wherever the sweep is interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import ml_collections
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from dbjax.arguments import nearest
from dbjax.files import plain
from experiments import build
from experiments.defaults import OPEN, flat
from experiments.fields import assign, at, require_effect
from experiments.sweep.space import Space
from experiments.sweep.trial import UNUSED, Job

LAG = 4  # the smallest lag: a trial depends only on those at least this many numbers before it
RUNGS = "rungs"  # attribute of a trial: the rungs of successive halving that it completed
optuna.logging.set_verbosity(optuna.logging.WARNING)  # by default it logs every new study
_MAY_DIFFER = {"config.data_dir", "config.executor", "space.trials"}
_WORDS = {
    "test_accuracy": "hold-out accuracy",
    "train_accuracy": "training accuracy",
    "test_loss": "hold-out loss",
    "train_loss": "training loss",
}


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that determines the trials of a sweep.

    Attributes:
      config: the config that all trials share.
      space: the fields that vary, and how their values are chosen.
      fixed: names of config fields that were set on the command line. They are assigned together
        with the fields of the space, because they may be arguments of something that the space
        names (`rule.learning_rate` of a `rule.name`).
      lag: the smallest distance, in trial numbers, between a trial and one that it depends on. Only
        TPE and the pruners depend on earlier trials.

    Raises:
      ValueError: the metric is unknown, a field of the space cannot be set or has no effect, or
        the pruner does not fit the config.
    """

    config: ml_collections.ConfigDict
    space: Space
    fixed: tuple[str, ...] = ()
    lag: int = LAG

    def __post_init__(self) -> None:
        known = _metrics(self.config)
        if self.metric not in known:
            raise ValueError(f"unknown metric {self.metric!r}{nearest(self.metric, known)}")
        if self.space.pruner != "none":
            if self.config.until_s is None or self.config.evaluations < 2:
                raise ValueError("a pruner needs until_s, and evaluations of at least 2")
            for name in ("until_s", "evaluations"):
                if name in self.space.space:
                    raise ValueError(f"pruning needs equal times: remove {name!r} from SPACE")
        self._require_fits()

    def _require_fits(self) -> None:
        for name in self.space.space:
            if name in self.fixed:
                value = at(self.config, name)
                raise ValueError(f"--config.{name}={value} has no effect: SPACE sets it")
            if name in UNUSED or name.startswith("ray."):
                raise ValueError(f"SPACE: {name!r} does not change a trial's outcome; remove it")
        ends = list(self.space.ends())
        self._require_effect([self._sound(values, first=ends[0]) for values in ends])

    def _sound(
        self, values: Mapping[str, Any], first: Mapping[str, Any]
    ) -> ml_collections.ConfigDict:
        """Returns the config of a trial with these values.

        Args:
          values: a value for each field of the space.
          first: the first values that are checked; an error with these does not quote them.

        Raises:
          ValueError: no run is possible with these values.
        """
        several = [n for n, v in self.space.space.items() if n in OPEN.values() and len(v.ends) > 1]
        try:
            config = self.configured(values)
            if config.runtime == "ray":
                raise ValueError("runtime='ray' is not for sweeps: a trial runs in one process")
            build.require_sound(config)
        except ValueError as error:
            if several:
                raise ValueError(
                    f"{error}; SPACE combines every value of {several[0]!r} with all its fields: "
                    "if those values have different fields, give each a space of its own"
                ) from error
            if values == first:
                raise
            chosen = ", ".join(f"{name}={value!r}" for name, value in values.items())
            raise ValueError(f"{error}; SPACE may choose {chosen}") from error
        return config

    def _require_effect(self, configs: Sequence[ml_collections.ConfigDict]) -> None:
        """Raises ValueError if a field of the space affects no trial, whatever its value."""
        clusters = [cluster for cluster in map(build.cluster, configs) if cluster is not None]
        if self.space.cluster_seeds > 1 and not clusters:
            raise ValueError(
                f"cluster_seeds={self.space.cluster_seeds} has no effect: it needs runtime=virtual"
            )
        for name in self.space.space:
            _require_effect_in_one(name, configs)
        every = [name for name in self.space.space if name.startswith("checkpoint.every")]
        if every and not any(cluster.nodes_can_fail for cluster in clusters):
            raise ValueError(
                f"SPACE: {every[0]!r} does not change the outcome of a trial: it needs nodes that "
                "can fail"
            )

    def configured(self, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """Returns the config of a trial whose fields have these values."""
        config = self.config.copy_and_resolve_references()
        given = {name: at(config, name) for name in self.fixed} | dict(values)
        # A field that has no effect in one trial may have one in another.
        assign(config, given, asked=values)
        return config

    def config_of(self, drawn: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """Returns the config of a trial, given the names or numbers drawn for its fields."""
        return self.configured(self.space.values(drawn))

    @property
    def metric(self) -> str:
        """The metric that is optimised: the space's, or the default of the task."""
        return self.space.metric or _metrics(self.config)[0]

    @property
    def words(self) -> str:
        """The metric in words, for figures and tables."""
        return _WORDS[self.metric]

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Losses are minimised, accuracies are maximised."""
        return "minimize" if self.metric.endswith("loss") else "maximize"

    @property
    def runs(self) -> int:
        """The number of runs of each trial."""
        return self.space.seeds * self.space.cluster_seeds

    @property
    def looks_back(self) -> bool:
        """Whether a trial depends on the results of earlier ones."""
        return self.space.sampler == "tpe" or self.space.pruner != "none"

    def job(self, drawn: Mapping[str, Any]) -> Job:
        """Returns what a worker needs to run a trial, given the values drawn for it."""
        config = self.config_of(drawn)
        prunes = self.space.pruner != "none"
        return Job(config, self.metric, self.space.seeds, self.space.cluster_seeds, prunes)

    def asked(
        self, number: int, earlier: Sequence[FrozenTrial], drawn: Mapping[str, Any] | None = None
    ) -> optuna.Trial:
        """Asks a new in-memory study that holds only the trials in `earlier` for a trial.

        Args:
          number: the number of the trial, from which its random seed follows.
          earlier: the ended trials that the sampler and the pruner may use.
          drawn: the values of the trial if they are already known, as when it is run again.
        """
        seed = int(np.random.SeedSequence([self.space.seed, number]).generate_state(1)[0])
        study = optuna.create_study(
            direction=self.direction, sampler=self._sampler(seed), pruner=self._pruner()
        )
        study.add_trials(map(_as_it_was, earlier))
        if drawn is None and self.space.sampler == "grid":
            drawn = self.space.point(number)
        if drawn is not None:
            study.enqueue_trial(dict(drawn))
        return study.ask(self.space.distributions)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.space.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _pruner(self) -> optuna.pruners.BasePruner:
        least = max(1, round(self.space.prune_from * self.config.evaluations))
        if self.space.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=least)
        if self.space.pruner == "halving":
            return optuna.pruners.SuccessiveHalvingPruner(least, reduction_factor=3)
        return optuna.pruners.NopPruner()

    def described(self) -> dict[str, Any]:
        """Returns everything that determines the trials, as JSON values."""
        config = plain(self.config.to_dict(), infinity="inf")
        return {"config": config, "space": self.space.described()}

    def difference(self, have: Mapping[str, Any]) -> str:
        """Compares this plan with the description of another (`described`).

        Returns:
          The first difference that affects the trials, in words; empty if there is none.
        """
        before, here = flat(dict(have)), flat(self.described())
        for name in sorted({*before, *here} - _MAY_DIFFER):
            if before.get(name) != here.get(name):
                return f"{name}={before.get(name)}, here it is {here.get(name)}"
        return ""


def _metrics(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the metrics that a run reports; the first one is the default."""
    if config.model.name == "linear":
        return ("test_loss", "train_loss")
    return ("test_accuracy", "train_accuracy", "train_loss")


def _as_it_was(trial: FrozenTrial) -> FrozenTrial:
    """Copies an ended trial, including what the pruner recorded about it."""
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return create_trial(
        state=trial.state,
        values=trial.values if ended else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        system_attrs=trial.user_attrs.get(RUNGS, {}),
    )


def _require_effect_in_one(name: str, configs: Sequence[ml_collections.ConfigDict]) -> None:
    """Raises ValueError if a field has no effect in all of the configs."""
    errors = []
    for config in configs:
        try:
            require_effect(config, [name])
        except ValueError as error:
            errors.append(error)
    if len(errors) == len(configs):
        raise ValueError(f"SPACE: {errors[0]}")
