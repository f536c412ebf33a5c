"""What the commands of Figures 4 and 5 are told, and what their pictures say of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from configs._figure4 import BATCH, DEFAULT, SIZES
from dbjax.arguments import nearest
from dbjax.models import PAPER, SpeechConfig
from experiments.command_line import parse

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
    """

    size: str
    seeds: int
    jobs: int
    workdir: Path
    runs: Path

    @property
    def seed_numbers(self) -> range:
        return range(1, 1 + self.seeds)

    @property
    def caption(self) -> str:
        """What is modelled, and what is computed."""
        frames, states, width, until_s, _ = SIZES[self.size]
        arithmetic = SpeechConfig(width=width, states=states).parameters
        return (
            f"clock: the paper's network of {PAPER.parameters / 1e6:.1f} M parameters, "
            f"mini-batches of {BATCH}, on the cluster fitted to Figure 3, for {until_s:g} s; "
            f"arithmetic: a network of {arithmetic / 1e6:.2g} M\n"
            f"{frames:,} frames, {states} states; median of {self.seeds} seeds, from the lowest to "
            "the highest; every method tuned by the same number of trials"
        )


def options(arguments: list[str], figure: str) -> Options:
    """Reads the command line of a figure.

    Raises:
      ValueError: anything is not understood.
    """
    chosen = parse(arguments, ("size", "runs", *_NUMBERS))
    given = chosen.options
    size = given.get("size", DEFAULT)
    if size not in SIZES:
        raise ValueError(f"no --size={size}{nearest(size, SIZES)}")
    numbers = dict(_NUMBERS)
    for name in _NUMBERS:
        if name in given:
            if not given[name].isdecimal() or not int(given[name]):
                raise ValueError(f"--{name}={given[name]} must be an integer of at least 1")
            numbers[name] = int(given[name])
    folder = Path(chosen.workdir or f"results/{figure}")
    runs = Path(given.get("runs", f"runs/figures/{size}"))
    return Options(size, workdir=folder, runs=runs, **numbers)
