"""What the commands of Figures 4 and 5 are told, and what their pictures say of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import ml_collections

from configs._figure4 import BATCH, DEFAULT, SIZES
from dbjax.arguments import nearest
from dbjax.models import PAPER, SpeechConfig
from experiments.command_line import override, parse

_NUMBERS = {"seeds": 3, "jobs": os.cpu_count() or 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a command.

    Attributes:
      size: of `SIZES`.
      seeds: runs of each method, with seeds 1, 2, ...
      jobs: runs at once.
      workdir: for the table and the picture.
      runs: for the runs, which both figures share.
      changes: fields of every method's config and their values, above what was tuned.
    """

    size: str
    seeds: int
    jobs: int
    workdir: Path
    runs: Path
    changes: tuple[tuple[str, str], ...] = ()

    @property
    def seed_numbers(self) -> range:
        return range(1, 1 + self.seeds)

    def changed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """As the command line says."""
        config = config.copy_and_resolve_references()
        for path, value in self.changes:
            override(config, path, value)
        return config

    def caption(self, config: ml_collections.ConfigDict) -> str:
        """What is modelled, and what is computed; of any method's config."""
        arithmetic = SpeechConfig(width=config.model.width, states=config.data.num_states)
        changes = "".join(f"; {path}={value}" for path, value in self.changes)
        return (
            f"clock: the paper's network of {PAPER.parameters / 1e6:.1f} M parameters, "
            f"mini-batches of {BATCH}, on the cluster fitted to Figure 3, for "
            f"{config.until_s:g} s; arithmetic: a network of {arithmetic.parameters / 1e6:.2g} M\n"
            f"{config.data.num_frames:,} frames, {config.data.num_states} states; median of "
            f"{self.seeds} seeds, from the lowest to the highest; every method tuned by the same "
            f"number of trials{changes}"
        )


def options(arguments: list[str], figure: str) -> Options:
    """Reads the command line of a figure.

    Raises:
      ValueError: anything is not understood.
    """
    pairs = [a.removeprefix("--config.").split("=", 1) for a in arguments if _changes(a)]
    changes = tuple((path, value) for path, value in pairs)
    chosen = parse([a for a in arguments if not _changes(a)], ("size", "runs", *_NUMBERS))
    given = chosen.options
    size = given.get("size", DEFAULT)
    if size not in SIZES:
        raise ValueError(f"no --size={size}{nearest(size, SIZES)}")
    if changes and (chosen.workdir is None or "runs" not in given):
        raise ValueError("with --config.FIELD=VALUE give a --workdir and --runs of their own")
    numbers = dict(_NUMBERS)
    for name in _NUMBERS:
        if name in given:
            if not given[name].isdecimal() or not int(given[name]):
                raise ValueError(f"--{name}={given[name]} must be an integer of at least 1")
            numbers[name] = int(given[name])
    folder = Path(chosen.workdir or f"results/{figure}")
    runs = Path(given.get("runs", f"runs/figures/{size}"))
    return Options(size, workdir=folder, runs=runs, changes=changes, **numbers)


def _changes(argument: str) -> bool:
    return argument.startswith("--config.") and "=" in argument
