"""What a trial is: a function of its number, and of trials well before it.

How many run at once, which of them ends first, and what was interrupted, decide nothing.
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

LAG = 4  # at least: a trial looks back at those so many numbers before it, and earlier ones
RUNGS = "rungs"  # attribute of a trial: how far it came, as successive halving notes it
optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each study
_MAY_DIFFER = {"config.data_dir", "space.trials"}
_WORDS = {
    "test_accuracy": "hold-out accuracy",
    "train_accuracy": "training accuracy",
    "test_loss": "hold-out loss",
    "train_loss": "training loss",
}


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep before it begins.

    Attributes:
      config: what is the same in all trials.
      space: what is not.
      fixed: fields of the config that were set apart: they are set together with those of the
        space, since they may be arguments of what that names.
      lag: a trial depends on none that is fewer numbers before it; for samplers and pruners
        that look back.
    """

    config: ml_collections.ConfigDict
    space: Space
    fixed: tuple[str, ...] = ()
    lag: int = LAG

    def __post_init__(self) -> None:
        known = _metrics(self.config)
        if self.metric not in known:
            raise ValueError(f"no metric {self.metric!r}{nearest(self.metric, known)}")
        if self.space.pruner != "none":
            if self.config.until_s is None or self.config.evaluations < 2:
                raise ValueError("a pruner needs until_s and evaluations before it")
            for name in ("until_s", "evaluations"):
                if name in self.space.space:
                    raise ValueError(f"a pruner compares at equal times: {name!r} must not vary")
        self._require_fits()

    def _require_fits(self) -> None:
        for name in self.space.space:
            if name in self.fixed:
                value = at(self.config, name)
                raise ValueError(f"--config.{name}={value} has no effect: SPACE sets it")
            if name in UNUSED or name.startswith("ray."):
                raise ValueError(f"SPACE: {name!r} does not change what comes of a trial")
        ends = list(self.space.ends())
        self._require_effect([self._sound(values, first=ends[0]) for values in ends])

    def _sound(
        self, values: Mapping[str, Any], first: Mapping[str, Any]
    ) -> ml_collections.ConfigDict:
        """The config of a trial with these values, if there can be one."""
        several = [n for n, v in self.space.space.items() if n in OPEN.values() and len(v.ends) > 1]
        try:
            config = self.configured(values)
            if config.runtime == "ray":
                raise ValueError("runtime='ray' is not for sweeps: trials run in one process each")
            build.require_sound(config)
        except ValueError as error:
            if several:
                raise ValueError(
                    f"{error}; every value of {several[0]!r} is tried with all fields of SPACE: "
                    "where they differ in their fields, give each a space of its own"
                ) from error
            if values == first:
                raise
            chosen = ", ".join(f"{name}={value!r}" for name, value in values.items())
            raise ValueError(f"{error}; SPACE may choose {chosen}") from error
        return config

    def _require_effect(self, configs: Sequence[ml_collections.ConfigDict]) -> None:
        """Raises ValueError if something changes no trial, whatever is chosen."""
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
                f"SPACE: {every[0]!r} does not change what comes of a trial: it needs nodes that "
                "die"
            )

    def configured(self, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """The config of a trial whose fields have these values."""
        config = self.config.copy_and_resolve_references()
        given = {name: at(config, name) for name in self.fixed} | dict(values)
        assign(config, given, asked=values)  # what one trial ignores, another may not
        return config

    def config_of(self, drawn: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """The config of a trial for which this was drawn."""
        return self.configured(self.space.values(drawn))

    @property
    def metric(self) -> str:
        return self.space.metric or _metrics(self.config)[0]

    @property
    def words(self) -> str:
        """The metric, to be read."""
        return _WORDS[self.metric]

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "minimize" if self.metric.endswith("loss") else "maximize"

    @property
    def runs(self) -> int:
        """Of each trial."""
        return self.space.seeds * self.space.cluster_seeds

    @property
    def looks_back(self) -> bool:
        return self.space.sampler == "tpe" or self.space.pruner != "none"

    def job(self, drawn: Mapping[str, Any]) -> Job:
        config = self.config_of(drawn)
        prunes = self.space.pruner != "none"
        return Job(config, self.metric, self.space.seeds, self.space.cluster_seeds, prunes)

    def asked(
        self, number: int, earlier: Sequence[FrozenTrial], drawn: Mapping[str, Any] | None = None
    ) -> optuna.Trial:
        """A trial of a study of its own, in memory, that knows `earlier` ones and no other.

        Args:
          drawn: its values, where they are known already.
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
        """All that decides what the trials are, for JSON."""
        config = plain(self.config.to_dict(), infinity="inf")
        return {"config": config, "space": self.space.described()}

    def difference(self, have: Mapping[str, Any]) -> str:
        """What another description has otherwise; empty: nothing that matters."""
        before, here = flat(dict(have)), flat(self.described())
        for name in sorted({*before, *here} - _MAY_DIFFER):
            if before.get(name) != here.get(name):
                return f"{name}={before.get(name)}, here it is {here.get(name)}"
        return ""


def _metrics(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Those that a run has; the first is what is optimised unless another is named."""
    if config.model.name == "linear":
        return ("test_loss", "train_loss")
    return ("test_accuracy", "train_accuracy", "train_loss")


def _as_it_was(trial: FrozenTrial) -> FrozenTrial:
    """A trial that has ended, with what a pruner noted of it."""
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
    """Raises ValueError if a field has no effect in any of the configs."""
    errors = []
    for config in configs:
        try:
            require_effect(config, [name])
        except ValueError as error:
            errors.append(error)
    if len(errors) == len(configs):
        raise ValueError(f"SPACE: {errors[0]}")
