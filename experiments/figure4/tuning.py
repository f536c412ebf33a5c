"""Tunes the methods by sweeps, and runs the tuned methods with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from configs._figure4 import TUNED, winners
from dbjax.files import prepare_file, write_json
from experiments.defaults import flat
from experiments.fields import assign
from experiments.figure4.methods import METHODS, replicas_of
from experiments.figure4.options import Options
from experiments.report.read import Run
from experiments.runs import run_all

Name = TypeVar("Name")


def tune(size: str, methods: Sequence[str], workdir: Path, jobs: int) -> str | None:
    """Tunes methods with the same number of trials each, and stores the winners.

    The best fields of each method are written to configs/figure4/tuned.json as soon as they are
    known. Repeat the same call to resume after an interruption.

    Args:
      size: a key of `configs._figure4.SIZES`.
      methods: keys of `METHODS`.
      workdir: the folder of the sweeps.
      jobs: the number of trials at once.

    Returns:
      The name of the signal that interrupted the tuning, or None.

    Raises:
      ValueError: all trials of a method failed.
    """
    from experiments.sweep.run import sweep  # only tuning needs Optuna
    from experiments.sweep.space import load_space

    prepare_file(TUNED)
    for key in methods:
        method = METHODS[key]
        space = load_space(f"configs/spaces/figure4/{method.space}.py")
        neutral = {name: values.ends[0] for name, values in space.space.items()}
        config = method.config(size)
        assign(config, neutral)  # so that earlier winners have no influence
        found = sweep(config, space, workdir / key, jobs=jobs, label=f"{key}:{size}")
        if found.interrupted:
            return found.interrupted
        if found.best is None or found.best_row is None:
            raise ValueError(f"{key}: no trial was completed; see {workdir / key}")
        best = flat(found.best.to_dict())
        fields = {name: best[name] for name in space.space}
        _save_winner(
            size, key, {"fields": fields, "test_accuracy": found.value, "trials": space.count}
        )
    return None


def _save_winner(size: str, key: str, winner: dict[str, Any]) -> None:
    sizes = winners()
    sizes.setdefault(size, {})[key] = winner
    write_json(TUNED, sizes)


def run_seeds(
    configs: Mapping[Name, tuple[str, ml_collections.ConfigDict]], chosen: Options, figure: str
) -> dict[Name, list[Run]]:
    """Runs configs with several seeds; finished runs in `chosen.runs` are read, not run again.

    Configs with the most replicas are started first.

    Args:
      configs: any name -> (key of a method in `METHODS`, config).
      chosen: the options of the command.
      figure: the name of the figure, for progress and warnings.

    Returns:
      Name -> one run per seed.
    """
    folders = {
        name: [f"{key}_{replicas_of(config)}/seed_{seed}" for seed in chosen.seed_numbers]
        for name, (key, config) in configs.items()
    }
    first = sorted(configs, key=lambda name: -replicas_of(configs[name][1]))
    seeded_configs = {
        folder: seeded(chosen.changed(configs[name][1]), seed)
        for name in first
        for folder, seed in zip(folders[name], chosen.seed_numbers, strict=True)
    }
    runs = run_all(seeded_configs, chosen.runs, chosen.jobs, figure)
    return {name: [runs[folder] for folder in mine] for name, mine in folders.items()}


def seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """Returns a copy of a config with the seeds of one run.

    Initial parameters, data order and delays all differ from those of tuning.
    """
    found = config.copy_and_resolve_references()
    found.seed, found.data_seed, found.cluster.seed = seed, 100 + seed, 200 + seed
    return found
