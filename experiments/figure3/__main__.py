"""Figure 3: speed-up of a replica that is partitioned over machines, from compiled programs.

python -m experiments.figure3 [--size=smoke|full] [--batch-size=100] [--workdir=DIR]

Compiles the training programs of the speech network and the three image networks for 1 to 128
devices (which need not exist; nothing is allocated), and reads FLOPs, messages and bytes from the
programs. Then fits the speed of a machine of 2012 and the cost of a message to the paper's speech
curve, and predicts the other curves. Writes figure3.csv, figure3.png, claims.md and cluster.json to
results/figure3, or to the given workdir.

  --size=full       four networks, 1 to 128 machines; takes two minutes (default)
  --size=smoke      speech and the smallest image network, fewer machines; takes half a minute
  --batch-size=N    examples per mini-batch (default: 100)

Paper: section 5, Figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dbjax.arguments import nearest
from dbjax.files import prepare, write_json
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.presets import GOOGLE_2012, H100_2023
from experiments import figures
from experiments.command_line import command, integer, log_to_terminal, parse
from experiments.figure3.calibration import calibrated
from experiments.figure3.networks import CONFIGS, SPEECH, VISION_80M, Point, points
from experiments.figure3.picture import figure
from experiments.figure3.results import by_machines, claims, rows, under_other_assumptions
from experiments.folders import require_place
from experiments.progress import counted

SIZES = {
    "full": (tuple(CONFIGS), (1, 2, 4, 8, 16, 32, 64, 81, 128)),
    "smoke": ((SPEECH, VISION_80M), (1, 4, 8, 16, 81)),
}


def main(arguments: list[str]) -> int:
    """Runs the command line of `python -m experiments.figure3`, and returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = parse(arguments, ("size", "batch-size"), config="none")
    size = chosen.options.get("size", "full")
    if size not in SIZES:
        raise ValueError(f"unknown --size={size}{nearest(size, SIZES)}")
    batch_size = integer(chosen.options, "batch-size", 100)
    default = "results/figure3" if size == "full" else f"runs/figure3/{size}"
    require_place(chosen.workdir or default, "figure3")
    workdir = prepare(chosen.workdir or default)
    networks, machines = SIZES[size]
    jax.config.update("jax_num_cpu_devices", max(machines))
    log_to_terminal()
    with counted("figure3", len(networks) * len(machines), "programs compiled") as tell:
        found = points(networks, machines, batch_size, tell)
    write(found, batch_size, workdir)
    return 0


def write(found: Sequence[Point], batch_size: int, workdir: Path) -> None:
    """Fits the cluster to the costs, and writes the files of the figure.

    Args:
      found: the compiled programs' costs.
      batch_size: the examples per mini-batch that the programs were compiled for.
      workdir: where to write.
    """
    cluster = calibrated(by_machines(found, SPEECH), GOOGLE_2012)
    table = rows(found, {"google_2012": cluster, "h100_2023": H100_2023})
    message = claims(found, cluster, under_other_assumptions(found, GOOGLE_2012))
    write_json(workdir / "cluster.json", _fields(cluster))
    titles = {
        "google_2012": "cluster of 2012, fitted to the speech curve",
        "h100_2023": "one H100 per machine, 400 Gb/s",
    }
    caption = (
        f"times modelled from the costs of compiled programs, mini-batches of {batch_size}; lines: "
        "no overlap, the slowest machine counts; shaded: up to perfect overlap\n"
        "right: memory traffic is taken from programs compiled for a CPU"
    )
    figures.leave(
        "figure3",
        workdir,
        rows=table,
        picture=figure(table, titles, caption),
        claims=message,
        measured="predicted from compiled programs",
        notes=_notes(cluster, batch_size),
    )


def _fields(cluster: Cluster) -> dict[str, Any]:
    return {
        "fitted": {
            "flops_per_s": cluster.machine.flops_per_s,
            "message_s": cluster.message_s,
        },
        "assumed": {
            "bandwidth_bytes_per_s": cluster.machine.bandwidth_bytes_per_s,
            "latency_s": cluster.latency_s,
            "sigma": cluster.machine.sigma,
        },
    }


def _notes(cluster: Cluster, batch_size: int) -> str:
    machine = cluster.machine
    return (
        f"Mini-batches of {batch_size}. Fitted to the speech curve: "
        f"{machine.flops_per_s / 1e9:.3g} GFLOP/s per machine, "
        f"{1e3 * cluster.message_s:.3g} ms per message. Assumed: network cards of "
        f"{8 * machine.bandwidth_bytes_per_s / 1e9:.3g} Gb/s, a latency of "
        f"{1e6 * cluster.latency_s:.3g} us, log-normal variation with sigma {machine.sigma:g}; "
        "other assumptions: sigma from 0 to 0.4, cards of 1 and 10 Gb/s, refitted for each."
    )


if __name__ == "__main__":
    command(main)
