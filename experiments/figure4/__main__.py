"""Figure 4: accuracy over time of six methods on speech frames, on the cluster of 2012.

python -m experiments.figure4 [--size=smoke|laptop|full] [--seeds=3] [--jobs=N] [--workdir=DIR]
    [--config.FIELD=VALUE ...]

Runs every method with every seed, several at once, in virtual time. The clock models the paper's
network of 42 million parameters on the cluster that was fitted to Figure 3; the gradients are those
of a smaller network. Writes figure4.csv, figure4.png and claims.md. Repeat the same command to
resume after an interruption.

  --size=laptop  as in results/figure4; takes a quarter of an hour on two cores (default)
  --size=smoke   fewer replicas and a tiny network; takes a minute
  --size=full    10 times the parameters, 20 times the virtual time; never run so far
  --size=laptop_fast_network    like laptop, but the cluster's network is ten times faster
  --size=laptop_small_batches   like laptop, but gradients of 10 examples, with ten times the noise
  --size=laptop_fast_small      both of these changes
  --size=laptop_long            like laptop, for ten times the virtual time
  --methods=A,B  methods to run, from sgd, gpu, downpour, downpour_adagrad, downpour_adagrad_200 and
                 sandblaster (default: all); sgd must be among them
  --seeds=N      number of seeds per method (default: 3)
  --jobs=N       number of runs at once, each on one core (default: the number of cores)
  --runs=DIR     folder of the runs, which figure5 shares (default: runs/figures/SIZE)
  --config.FIELD=VALUE  sets a field for every method, to see what a result depends on; needs
                 --workdir and --runs
  --tune         first tunes every method with the same number of trials, using the spaces in
                 configs/spaces/figure4; the winners are written to configs/figure4/tuned.json

Paper: section 5, Figure 4.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dbjax.files import prepare
from dbjax.signals import exit_code
from experiments import figures
from experiments.command_line import command, log_to_terminal
from experiments.figure4.claims import claims
from experiments.figure4.methods import METHODS
from experiments.figure4.options import options
from experiments.figure4.picture import figure
from experiments.figure4.results import Runs, order, provenance, rows, stated
from experiments.figure4.tuning import run_seeds, tune
from experiments.folders import require_place


def main(arguments: list[str]) -> int:
    """Runs the command line of `python -m experiments.figure4`, and returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = options([a for a in arguments if a != "--tune"], "figure4", "methods")
    if "--tune" in arguments and chosen.changes:
        raise ValueError("--tune uses the configs as they are: leave out --config.FIELD=VALUE")
    require_place(chosen.workdir, "figure4")
    prepare(chosen.workdir)
    log_to_terminal()
    if "--tune" in arguments:
        interrupted = tune(chosen.size, chosen.methods, chosen.runs / "tuning", chosen.jobs)
        if interrupted:
            print("interrupted: repeat the command to resume", file=sys.stderr)
            return exit_code(interrupted)
    configs = {key: (key, METHODS[key].config(chosen.size)) for key in chosen.methods}
    caption = chosen.caption(chosen.changed(configs["sgd"][1]))
    write(run_seeds(configs, chosen, "figure4"), caption, chosen.workdir)
    return 0


def write(runs: Runs, caption: str, workdir: Path) -> None:
    """Writes the files of the figure, given its runs."""
    figures.leave(
        "figure4",
        workdir,
        rows=rows(runs),
        picture=figure(runs, caption),
        claims=claims(runs),
        measured=f"time to the final accuracy of SGD [1] with the same seed (mean: "
        f"{stated(runs):.1%})",
        notes=f"{order(runs)}\n\n{caption}; {provenance(runs)}.",
    )


if __name__ == "__main__":
    command(main)
