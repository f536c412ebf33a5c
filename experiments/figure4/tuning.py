"""Tunes every method by a sweep of the same number of trials, and keeps the winners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs._figure4 import TUNED, winners
from dbjax.files import prepare_file, write_json
from experiments.defaults import flat
from experiments.fields import assign
from experiments.figure4.methods import METHODS
from experiments.sweep.run import sweep
from experiments.sweep.space import load_space


def tune(size: str, methods: Sequence[str], workdir: Path, jobs: int) -> str | None:
    """Writes configs/figure4/tuned.json, method by method.

    Returns:
      The signal that has interrupted it; the same call goes on.
    """
    prepare_file(TUNED)
    for key in methods:
        method = METHODS[key]
        space = load_space(f"configs/spaces/figure4/{method.space}.py")
        neutral = {name: values.ends[0] for name, values in space.space.items()}
        config = method.config(size)
        assign(config, neutral)  # the same whatever was found before
        found = sweep(config, space, workdir / key, jobs=jobs, label=f"{key}:{size}")
        if found.interrupted:
            return found.interrupted
        if found.best is None or found.best_row is None:
            raise ValueError(f"{key}: no trial was complete; see {workdir / key}")
        best = flat(found.best.to_dict())
        fields = {name: best[name] for name in space.space}
        _keep(size, key, {"fields": fields, "test_accuracy": found.value, "trials": space.count})
    return None


def _keep(size: str, key: str, winner: dict[str, Any]) -> None:
    sizes = winners()
    sizes.setdefault(size, {})[key] = winner
    write_json(TUNED, sizes)
