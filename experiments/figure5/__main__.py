"""Figure 5: time to a hold-out accuracy against machines and cores, on the cluster of 2012.

python -m experiments.figure5 [--size=smoke|laptop|full] [--seeds=3] [--jobs=N] [--workdir=DIR]
    [--config.FIELD=VALUE ...]

Runs three methods with four numbers of replicas each, and the GPU, to the accuracy that SGD [1]
has at the end of Figure 4. Writes figure5.csv, figure5.png and claims.md. Runs of figure4 are
reused. Repeat the same command to resume after an interruption.

  --size=laptop  as in results/figure5; takes ten minutes on two cores after figure4 (default)
  --size=smoke   fewer replicas and a tiny network; takes a minute
  --size=full    10 times the parameters, 20 times the virtual time; never run so far
  --seeds=N      number of seeds per configuration (default: 3)
  --jobs=N       number of runs at once, each on one core (default: the number of cores)
  --runs=DIR     folder of the runs, which figure4 shares (default: runs/figures/SIZE)
  --config.FIELD=VALUE  sets a field for every method, to see what a result depends on; needs
                 --workdir and --runs

Paper: section 5, Figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from dbjax.files import prepare
from experiments import figures
from experiments.command_line import command, log_to_terminal
from experiments.figure4.options import Options, options, parameters
from experiments.figure4.results import stated
from experiments.figure4.tuning import run_seeds
from experiments.figure5.picture import figure
from experiments.figure5.points import Point, configs, points, rows
from experiments.figure5.results import claims
from experiments.folders import require_place


def main(arguments: list[str]) -> int:
    """Runs the command line of `python -m experiments.figure5`, and returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = options(arguments, "figure5")
    require_place(chosen.workdir, "figure5")
    prepare(chosen.workdir)
    log_to_terminal()
    drawn = configs(chosen.size)
    config = chosen.changed(drawn["sgd", 1][1])
    runs = run_seeds(drawn, chosen, "figure5")
    accuracy = stated({"sgd": runs["sgd", 1]})
    write(points(runs, accuracy), accuracy, config, chosen)
    return 0


def write(
    found: Sequence[Point], accuracy: float, config: ml_collections.ConfigDict, chosen: Options
) -> None:
    """Writes the files of the figure.

    Args:
      found: the points of the figure.
      accuracy: the hold-out accuracy that they refer to.
      config: the config of SGD [1].
      chosen: the options of the command.
    """
    deadline_s, computed = config.until_s, parameters(config)
    caption = (
        f"{chosen.caption(config)}\ntuned with 20 replicas for Downpour, 20 and 200 with Adagrad"
    )
    figures.leave(
        "figure5",
        chosen.workdir,
        rows=rows(found, accuracy, deadline_s, computed),
        picture=figure(found, accuracy, deadline_s, caption),
        claims=claims(found, deadline_s),
        measured=f"time to {accuracy:.1%} hold-out accuracy, the final accuracy of SGD [1]",
        notes=f"{caption}.",
    )


if __name__ == "__main__":
    command(main)
