r"""Tries values of fields of a config, and says which are best.

python -m experiments.sweep --config=configs/NAME.py[:smoke] --space=configs/spaces/NAME.py \
    --workdir=DIR [--trials=N] [--jobs=J] [--config.FIELD=VALUE ...]

The same command again goes on where it was interrupted; with more --trials, to more of them.

Fields of a space, and those of --config.FIELD=VALUE, are set together, in no order. A space may
choose a name, such as "rule.name": choice("sgd", "adam"); its other fields must then be ones that
every one of the names has. Names whose fields differ get a space each.

  --jobs=J           trials at once, each on one core (1)
  --on=ray           on the machines that Ray knows at --config.ray.address (processes: on this one)
  --sampler=         grid, random, tpe               these, and --trials, stand above
  --pruner=          none, median, halving           what the space says
  --seeds=N          runs a trial, with other data orders and initial parameters; the mean counts
  --cluster-seeds=N  and with other delays
  --seed=N           of the sampler
  --metric=NAME      what is optimised: test_accuracy (default), train_accuracy, train_loss; of a
                     regression test_loss (default), train_loss
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
    from experiments.sweep.results import errors, table
    from experiments.sweep.run import sweep
    from experiments.sweep.space import SPACES, load_space

_NUMBERS = {"trials": 1, "jobs": 1, "seeds": 1, "cluster-seeds": 1, "seed": 0}  # and the least
_NAMES = ("sampler", "pruner", "metric")


def main(arguments: list[str]) -> int:
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
        raise ValueError("needs --config=FILE, --space=FILE and --workdir=DIR; --help says more")
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
            f"interrupted after {ended} of {space.count} trials: the same command goes on",
            file=sys.stderr,
        )
        return exit_code(result.interrupted)
    if result.best is None:
        print(f"error: no trial was complete: {errors(result.rows)[0]}", file=sys.stderr)
        return 1
    console.print(table(result))
    pictures = ", ".join(sorted(path.name for path in Path(chosen.workdir).glob("*.png")))
    console.print(
        f"everything is in {chosen.workdir}: best.py (--config=FILE of experiments.run), "
        f"trials.csv, {pictures}, study.db (of Optuna), trials/",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    command(main)
