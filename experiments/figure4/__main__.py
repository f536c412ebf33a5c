"""Figure 4: accuracy against time of six methods on speech frames, on the cluster of 2012.

python -m experiments.figure4 [--size=smoke|laptop|full] [--seeds=3] [--jobs=N] [--workdir=DIR]
    [--config.FIELD=VALUE ...]

Runs every method with every seed, several at once, in virtual time: that of the paper's network of
42 million parameters on the cluster that Figure 3 fits, while gradients are those of a smaller
one. Writes figure4.csv, figure4.png and claims.md. The same command again goes on where it was
interrupted.

  --size=laptop  as in results/figure4: a quarter of an hour on two cores
  --size=smoke   fewer replicas, a tiny network: a minute
  --size=full    10 times the parameters, 20 times as long; never run so far
  --size=laptop_fast_network    as laptop, on a network ten times faster
  --size=laptop_small_batches   as laptop, with gradients of 10 examples: ten times the noise
  --size=laptop_fast_small      both
  --size=laptop_long            as laptop, for ten times as long
  --methods=     some of sgd,gpu,downpour,downpour_adagrad,downpour_adagrad_200,sandblaster
  --jobs=N       runs at once, each on one core (as many as there are cores)
  --runs=DIR     where the runs lie, which figure5 shares (runs/figures/SIZE)
  --config.FIELD=VALUE  of every method, to see what a result depends on; --workdir and --runs
                 must be given
  --tune         first tunes every method, with the same number of trials, by spaces in
                 configs/spaces/figure4; the winners go to configs/figure4/tuned.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from dbjax.files import prepare
from dbjax.signals import exit_code
from experiments import figures
from experiments.command_line import command, log_to_terminal
from experiments.figure4.methods import METHODS
from experiments.figure4.options import options
from experiments.figure4.picture import figure
from experiments.figure4.results import Runs, order, provenance, rows, stated
from experiments.figure4.seeds import run_seeds
from experiments.figure4.sentences import claims
from experiments.folders import require_place


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = options([a for a in arguments if a != "--tune"], "figure4", "methods")
    if "--tune" in arguments and chosen.changes:
        raise ValueError("--tune goes without --config.FIELD=VALUE: it tunes what configs/ say")
    require_place(chosen.workdir, "figure4")
    prepare(chosen.workdir)
    log_to_terminal()
    if "--tune" in arguments:
        from experiments.figure4.tuning import tune  # it needs Optuna

        interrupted = tune(chosen.size, chosen.methods, chosen.runs / "tuning", chosen.jobs)
        if interrupted:
            print("interrupted: the same command goes on", file=sys.stderr)
            return exit_code(interrupted)
    configs = {key: (key, METHODS[key].config(chosen.size)) for key in chosen.methods}
    caption = chosen.caption(chosen.changed(configs["sgd"][1]))
    write(run_seeds(configs, chosen, "figure4"), caption, chosen.workdir)
    return 0


def write(runs: Runs, caption: str, workdir: Path) -> None:
    """All that follows from the runs."""
    figures.leave(
        "figure4",
        workdir,
        rows=rows(runs),
        picture=figure(runs, caption),
        claims=claims(runs),
        measured=f"time to what SGD [1] of the same seed has at the end ({stated(runs):.1%})",
        notes=f"{order(runs)}\n\n{caption}; {provenance(runs)}.",
    )


if __name__ == "__main__":
    command(main)
