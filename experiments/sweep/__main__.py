r"""Searches for good values of config fields, and reports the best ones.

python -m experiments.sweep --config=configs/NAME.py[:smoke] --space=configs/spaces/NAME.py \
    --workdir=DIR [--trials=N] [--jobs=J] [--config.FIELD=VALUE ...]

Repeat the same command to resume an interrupted sweep. Repeat it with more --trials to extend a
finished one.

The fields of the space and those of --config.FIELD=VALUE are assigned together, so their order does
not matter. A space may choose a name, such as "rule.name": choice("sgd", "adam"). Its other fields
must then exist under each of these names; names with different fields need a space each.

  --jobs=J           number of trials that run at once, each on one core (default: 1)
  --on=ray           run the trials on the Ray cluster at --config.ray.address (default: processes,
                     which run on this machine)

The following flags, and --trials, override what the space file sets.

  --sampler=NAME     grid, random or tpe
  --pruner=NAME      none, median or halving
  --seeds=N          runs per trial with different data orders and initial parameters; a trial's
                     value is the mean over its runs
  --cluster-seeds=N  runs per trial, for each of --seeds, with different network and compute delays
  --seed=N           seed of the sampler
  --metric=NAME      what to optimise: test_accuracy (default), train_accuracy or train_loss; for a
                     regression, test_loss (default) or train_loss
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import rich.console

from dbjax.signals import exit_code
from experiments.command_line import available, command, integer, log_to_terminal, parse

if importlib.util.find_spec("optuna") is not None:
    from experiments.sweep.output import table
    from experiments.sweep.results import errors
    from experiments.sweep.run import sweep
    from experiments.sweep.space import SPACES, load_space

# Integer flags, with the smallest value that each allows.
_NUMBERS = {"trials": 1, "jobs": 1, "seeds": 1, "cluster-seeds": 1, "seed": 0}
_NAMES = ("sampler", "pruner", "metric")


def main(arguments: list[str]) -> int:
    """Runs the command line of `python -m experiments.sweep`, and returns its exit code."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("sweeps need Optuna: pip install 'dbjax[sweep]'")
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip(), "\n\nspaces:", *available(SPACES), sep="\n  ")
        return 0
    chosen = parse(
        arguments, ("space", "on", *_NUMBERS, *_NAMES), asked=("ray.address", "evaluations")
    )
    options = chosen.options
    if chosen.config is None or chosen.workdir is None or "space" not in options:
        raise ValueError("a sweep needs --config=FILE, --space=FILE and --workdir=DIR; see --help")
    on = options.get("on", "processes")
    given: dict[str, Any] = {
        name: integer(options, name, default=least, least=least)
        for name, least in _NUMBERS.items()
        if name in options
    }
    given |= {name: options[name] for name in _NAMES if name in options}
    given = {name.replace("-", "_"): value for name, value in given.items()}
    jobs = given.pop("jobs", 1)
    space = load_space(options["space"], **given)
    log_to_terminal()
    label = next(a.partition("=")[2] for a in arguments if a.startswith("--config="))
    result = sweep(
        chosen.config,
        space,
        chosen.workdir,
        jobs=jobs,
        on=on,
        label=label,
        fixed=chosen.changes,
    )
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    if result.interrupted:
        ended = sum(row["state"] != "left running" for row in result.rows)
        print(
            f"interrupted after {ended} of {space.count} trials: repeat the command to resume",
            file=sys.stderr,
        )
        return exit_code(result.interrupted)
    if result.best is None:
        print(f"error: no trial was completed: {errors(result.rows)[0]}", file=sys.stderr)
        return 1
    console.print(table(result))
    pictures = ", ".join(sorted(path.name for path in Path(chosen.workdir).glob("*.png")))
    console.print(
        f"results are in {chosen.workdir}: best.py (for --config=FILE of experiments.run), "
        f"trials.csv, {pictures}, study.db (the Optuna study), trials/",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    command(main)
