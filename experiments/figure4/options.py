"""What the commands of Figures 4 and 5 are told, and what their pictures say of it."""

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

# Fields that other fields of a config of Figure 4 follow from.
_DERIVED = ("batch_size", "model.", "data.num_states", "cluster.compute_s", "cluster.machine",
            "options.replicas", "options.shards", "runtime", "algorithm",
            "data.name")  # fmt: skip
_SEEDS = ("seed", "data_seed", "cluster.seed")
_NUMBERS = {"seeds": 3, "jobs": os.cpu_count() or 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a command.

    Attributes:
      size: of `SIZES`.
      seeds: runs of each method, with seeds 1, 2, ...
      jobs: runs at once.
      methods: keys of `METHODS`.
      workdir: for the table and the picture.
      runs: for the runs, which both figures share.
      changes: fields of every method's config and their values, as text, above what was tuned.
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
        return range(1, 1 + self.seeds)

    def changed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """As the command line says.

        Raises:
          ValueError: the config cannot be changed so, or not be run then.
        """
        config = config.copy_and_resolve_references()
        assign_texts(config, self.changes)
        build.require_sound(config)
        if config.until_s is None:
            raise ValueError("until_s=None: a figure needs a time until which all methods run")
        return config

    def caption(self, config: ml_collections.ConfigDict) -> str:
        """What is modelled, and what is computed; of any method's config."""
        size, computed = SIZES[self.size], parameters(config)
        network = f"{size.network:g} times the network of " if size.network != 1 else ""
        changes = "".join(f"; {path}={value}" for path, value in self.changes.items())
        return (
            f"clock: the paper's network of {PAPER.parameters / 1e6:.1f} M parameters on {network}"
            f"the cluster fitted to Figure 3, mini-batches of 100, {config.until_s:g} s; "
            f"arithmetic: a network of {computed / 1e6:.2g} M, mini-batches of {size.batch}\n"
            f"{config.data.num_frames:,} frames, {config.data.num_states} states; accuracy on "
            f"{config.evaluate_examples:,} of them; median of {self.seeds} seeds, from the lowest "
            f"to the highest{changes}\n{tuning(self.size, self.methods)}"
        )


def parameters(config: ml_collections.ConfigDict) -> int:
    """Of the network whose gradients are computed."""
    model = config.model
    return SpeechConfig(
        width=model.width, depth=model.depth, states=config.data.num_states
    ).parameters


def tuning(size: str, methods: Sequence[str]) -> str:
    """How the methods were tuned, in words."""
    ways: dict[str, list[str]] = {}
    for method in methods:
        ways.setdefault(_tuning(size, method), []).append(method)
    if len(ways) == 1:
        return f"each method {next(iter(ways))}"
    return "; ".join(f"{', '.join(some)}: {said}" for said, some in ways.items())


def _tuning(size: str, method: str) -> str:
    at = tuned_at(method, size)
    if at is None:
        return "not tuned"
    trials = winners()[at][method]["trials"]
    said = f"tuned by {trials} trials, for hold-out accuracy at the end"
    return said if at == size else f"{said}, at size {at}"


def options(arguments: list[str], figure: str, *more: str) -> Options:
    """Reads the command line of a figure; `more` are flags that only this one knows.

    Raises:
      ValueError: anything is not understood.
    """
    chosen = parse(arguments, ("size", "runs", *more, *_NUMBERS), config="fields")
    given, changes = chosen.options, chosen.changes
    size = given.get("size", DEFAULT)
    if size not in SIZES:
        raise ValueError(f"no --size={size}{nearest(size, SIZES)}")
    for path in changes:
        if path.startswith(_DERIVED):
            raise ValueError(f"--config.{path}: the clock depends on it; see configs/_figure4.py")
        if path in _SEEDS:
            raise ValueError(f"--config.{path}: every run has seeds of its own; give --seeds=N")
        if path in UNUSED:
            raise ValueError(f"--config.{path} has no effect on what the figure shows")
    if changes and (chosen.workdir is None or "runs" not in given):
        raise ValueError("with --config.FIELD=VALUE give a --workdir and --runs of their own")
    methods = tuple(given["methods"].split(",")) if "methods" in given else tuple(METHODS)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--methods: no {method!r}{nearest(method, METHODS)}")
    if "sgd" not in methods:
        raise ValueError("--methods: 'sgd' must be among them: others are held against it")
    numbers = {name: integer(given, name, default) for name, default in _NUMBERS.items()}
    where = f"results/{figure}" if size == DEFAULT else f"runs/{figure}/{size}"
    runs = Path(given.get("runs", f"runs/figures/{size}"))
    return Options(
        size, methods, **numbers, workdir=Path(chosen.workdir or where), runs=runs, changes=changes
    )
