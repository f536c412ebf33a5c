"""Figure 5: time to a hold-out accuracy against machines and cores, on the cluster of 2012.

python -m experiments.figure5 [--size=smoke|laptop|full] [--seeds=3] [--jobs=N] [--workdir=DIR]
    [--config.FIELD=VALUE ...]

Runs three methods with four numbers of replicas each, and the GPU, to the accuracy that SGD [1]
has at the end of Figure 4. Writes figure5.csv, figure5.png and claims.md. What figure4 has run
already is not run again; the same command again goes on where it was interrupted.

  --size=laptop  as in results/figure5: ten minutes on two cores, once figure4 has run
  --size=smoke   fewer replicas, a tiny network: a minute
  --size=full    10 times the parameters, 20 times as long; never run so far
  --jobs=N       runs at once, each on one core (as many as there are cores)
  --runs=DIR     where the runs lie, which figure4 shares (runs/figures/SIZE)
  --config.FIELD=VALUE  of every method, to see what a result depends on; --workdir and --runs
                 must be given
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from dbjax.files import prepare
from experiments import figures
from experiments.command_line import command, log_to_terminal
from experiments.figure4.options import Options, options, parameters
from experiments.figure4.results import stated
from experiments.figure4.seeds import run_seeds
from experiments.figure5.picture import figure
from experiments.figure5.points import Point, configs, points, rows
from experiments.figure5.results import claims
from experiments.folders import require_place


def main(arguments: list[str]) -> int:
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
    """All that follows from the points, and the config of SGD [1]."""
    deadline_s, computed = config.until_s, parameters(config)
    caption = f"{chosen.caption(config)}, Downpour at 20, with Adagrad at 20 and 200 replicas"
    figures.leave(
        "figure5",
        chosen.workdir,
        rows=rows(found, accuracy, deadline_s, computed),
        picture=figure(found, accuracy, deadline_s, caption),
        claims=claims(found, deadline_s),
        measured=f"time to {accuracy:.1%} on the hold-out set, what SGD [1] has at the end",
        notes=f"{caption}.",
    )


if __name__ == "__main__":
    command(main)
