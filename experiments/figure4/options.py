"""The command line of Figures 4 and 5, and the captions that describe it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from configs._figure4 import DEFAULT, SIZES, tuned_at, winners
from dbjax.arguments import nearest
from dbjax.models import PAPER, SpeechConfig
from experiments import build
from experiments.command_line import integer, parse
from experiments.fields import assign_texts
from experiments.figure4.methods import METHODS
from experiments.sweep.trial import UNUSED

# Fields from which configs/_figure4.py derives other fields, so that they cannot be set alone.
_DERIVED = ("batch_size", "model.", "data.num_states", "cluster.compute_s", "cluster.machine",
            "options.replicas", "options.shards", "runtime", "algorithm",
            "data.name")  # fmt: skip
_SEEDS = ("seed", "data_seed", "cluster.seed")
_NUMBERS = {"seeds": 3, "jobs": os.cpu_count() or 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a command.

    Attributes:
      size: a key of `SIZES`.
      methods: keys of `METHODS`.
      seeds: the number of runs of each method, with seeds 1, 2, ...
      jobs: the number of runs at once.
      workdir: the folder for the table, the picture and the claims.
      runs: the folder of the runs, which both figures share.
      changes: config field -> value as text; overrides the tuned config of every method.
    """

    size: str
    methods: tuple[str, ...]
    seeds: int
    jobs: int
    workdir: Path
    runs: Path
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seed_numbers(self) -> range:
        """The seeds: 1, 2, ..."""
        return range(1, 1 + self.seeds)

    def changed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """Returns a copy of a config with the changes of the command line.

        Raises:
          ValueError: a change is invalid, or the changed config cannot be run.
        """
        config = config.copy_and_resolve_references()
        assign_texts(config, self.changes)
        build.require_sound(config)
        if config.until_s is None:
            raise ValueError("until_s=None: set the time at which all runs end")
        return config

    def caption(self, config: ml_collections.ConfigDict) -> str:
        """Returns a caption: what the clock models, what is computed, data, seeds and tuning.

        Args:
          config: the config of any of the methods.
        """
        size, computed = SIZES[self.size], parameters(config)
        network = f" with a {size.network:g} times faster network" if size.network != 1 else ""
        changes = "".join(f"; {path}={value}" for path, value in self.changes.items())
        return (
            f"clock: the paper's network of {PAPER.parameters / 1e6:.1f} M parameters on the "
            f"cluster fitted to Figure 3{network}, mini-batches of 100, {config.until_s:g} virtual "
            f"s\ngradients: a network of {computed / 1e6:.2g} M parameters, mini-batches of "
            f"{size.batch}; {config.data.num_frames:,} frames, {config.data.num_states} states; "
            f"accuracy on {config.evaluate_examples:,} frames; median and range over {self.seeds} "
            f"seeds{changes}\n{tuning(self.size, self.methods)}"
        )


def parameters(config: ml_collections.ConfigDict) -> int:
    """Returns the number of parameters of the network whose gradients are computed."""
    model = config.model
    return SpeechConfig(
        width=model.width, depth=model.depth, states=config.data.num_states
    ).parameters


def tuning(size: str, methods: Sequence[str]) -> str:
    """Returns how the methods were tuned, in words."""
    ways: dict[str, list[str]] = {}
    for method in methods:
        ways.setdefault(_tuning(size, method), []).append(method)
    if len(ways) == 1:
        return f"each method {next(iter(ways))}"
    return "; ".join(f"{', '.join(some)}: {message}" for message, some in ways.items())


def _tuning(size: str, method: str) -> str:
    at = tuned_at(method, size)
    if at is None:
        return "not tuned"
    trials = winners()[at][method]["trials"]
    message = f"tuned by {trials} trials for final hold-out accuracy"
    return message if at == size else f"{message}, at size {at}"


def options(arguments: list[str], figure: str, *more: str) -> Options:
    """Parses the command line of a figure.

    Args:
      arguments: the arguments of the command.
      figure: "figure4" or "figure5".
      *more: names of flags that only this figure has.

    Raises:
      ValueError: an argument is unknown or invalid; the message names it.
    """
    chosen = parse(arguments, ("size", "runs", *more, *_NUMBERS), config="fields")
    given, changes = chosen.options, chosen.changes
    size = given.get("size", DEFAULT)
    if size not in SIZES:
        raise ValueError(f"unknown --size={size}{nearest(size, SIZES)}")
    for path in changes:
        if path.startswith(_DERIVED):
            raise ValueError(
                f"--config.{path}: the clock depends on it; edit configs/_figure4.py instead"
            )
        if path in _SEEDS:
            raise ValueError(f"--config.{path}: every run has seeds of its own; give --seeds=N")
        if path in UNUSED:
            raise ValueError(f"--config.{path} has no effect on what the figure shows")
    if changes and (chosen.workdir is None or "runs" not in given):
        raise ValueError("--config.FIELD=VALUE needs a --workdir and --runs of its own")
    methods = tuple(given["methods"].split(",")) if "methods" in given else tuple(METHODS)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods: unknown {method!r}{nearest(method, METHODS)}")
    if "sgd" not in methods:
        raise ValueError("--methods must include 'sgd', which the others are compared with")
    numbers = {name: integer(given, name, default) for name, default in _NUMBERS.items()}
    where = f"results/{figure}" if size == DEFAULT else f"runs/{figure}/{size}"
    runs = Path(given.get("runs", f"runs/figures/{size}"))
    return Options(
        size, methods, **numbers, workdir=Path(chosen.workdir or where), runs=runs, changes=changes
    )
