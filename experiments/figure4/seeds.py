"""Runs of configs, each with several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import ml_collections

from experiments.figure4.methods import replicas_of
from experiments.figure4.options import Options
from experiments.report.read import Run
from experiments.runs import run_all

Name = TypeVar("Name")


def run_seeds(
    configs: Mapping[Name, tuple[str, ml_collections.ConfigDict]], chosen: Options, figure: str
) -> dict[Name, list[Run]]:
    """Runs them, the one with the most replicas first; what is there is not run again.

    Args:
      configs: by any name: the key of a method, as in `METHODS`, and its config.
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
    """With its own initial parameters, order of the data, and delays; none is that of tuning."""
    found = config.copy_and_resolve_references()
    found.seed, found.data_seed, found.cluster.seed = seed, 100 + seed, 200 + seed
    return found
