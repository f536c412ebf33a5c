"""Trains the paper's network of 1.7 billion parameters for a few steps on one machine.

python -m benchmarks.large_model [--units=36] [--steps=3] [--batch-size=4] [--shards=2]

One replica of Downpour SGD and its shards run in one process, through `dbjax.run`. Memory peaks
while the gradient is computed: parameters and gradient take 6.3 GiB each for 36 units, and every
leaf that is split between two shards is copied to join its parts. Two kernels hold 92% of the
parameters. Two shards split one of them; three or more split both, which takes more memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys

import jax
import numpy as np
import optax
import rich.console
import rich.table

import dbjax
from benchmarks.measure import peak_memory_gb
from dbjax.algorithms import downpour
from dbjax.data import ArrayExamples, Labelled
from dbjax.files import prepare, write_json
from dbjax.models import VisionConfig, model
from dbjax.run_dir.provenance import commit, host, versions
from dbjax.runtime.trace import Span, Trace

RATE = 0.004
_GIB = 1e9 / 2**30  # GiB in a GB


@dataclasses.dataclass(frozen=True)
class Trained:
    """The measurements of a run.

    Attributes:
      parameters: the number of parameters, all float32.
      losses: the loss of each step, at the parameters with which the step began.
      step_s: the seconds of each step; the first one includes compilation.
      parts_s: the seconds that the replica spent on "fetch", "compute" and "push" in all steps.
      bytes_fetched: the bytes that the replica fetched in all steps.
      bytes_pushed: the bytes that the replica pushed in all steps.
    """

    parameters: int
    losses: list[float]
    step_s: list[float]
    parts_s: dict[str, float]
    bytes_fetched: int
    bytes_pushed: int


def train(config: VisionConfig, *, steps: int, batch_size: int, shards: int) -> Trained:
    """Trains the network with one replica of Downpour SGD on a single random mini-batch.

    Args:
      config: the network.
      steps: the number of steps.
      batch_size: the number of examples.
      shards: the number of shards.
    """
    network = model(config, seed=0)
    task = dbjax.Task(network.init, network.loss, _examples(config, batch_size), batch_size)
    method = downpour.Config(optax.sgd(RATE), replicas=1, shards=shards, steps=steps)
    trace = Trace(max_spans=sys.maxsize)
    summary = dbjax.run(task, method, runtime="threads", trace=trace).summary
    rows = [row for row in trace.rows if "loss" in row]
    ends_s = [0.0, *(row["time_s"] for row in rows)]
    return Trained(
        network.size,
        [float(row["loss"]) for row in rows],
        [end - begin for begin, end in itertools.pairwise(ends_s)],
        _parts_s(trace.spans),
        summary["bytes_fetched"],
        summary["bytes_pushed"],
    )


def _examples(config: VisionConfig, number: int) -> ArrayExamples:
    random = np.random.default_rng(0)
    images = random.normal(size=(number, config.inputs)).astype(np.float32)
    return ArrayExamples(
        Labelled(images, random.integers(config.classes, size=number).astype(np.int32))
    )


def _parts_s(spans: list[Span]) -> dict[str, float]:
    """The seconds that the replica spent on each kind of work; they do not overlap."""
    parts = {"fetch": 0.0, "compute": 0.0, "push": 0.0}
    for span in spans:
        if span.node == "replica/0":
            parts[span.kind] += span.end_s - span.start_s
    return parts


def show(trained: Trained, console: rich.console.Console) -> None:
    """Prints the measurements."""
    table = rich.table.Table(title=f"{trained.parameters:,} parameters", title_justify="left")
    for column in ("step", "loss", "seconds"):
        table.add_column(column, justify="right")
    for step, (loss, took_s) in enumerate(zip(trained.losses, trained.step_s, strict=True)):
        table.add_row(str(step), f"{loss:.4f}", f"{took_s:.1f}")
    console.print(table)
    parts = ", ".join(f"{name} {took_s:.1f} s" for name, took_s in trained.parts_s.items())
    console.print(f"  all steps together: {parts}", soft_wrap=True)
    moved = f"{trained.bytes_fetched:,} bytes fetched, {trained.bytes_pushed:,} pushed"
    console.print(f"  {moved}; peak memory {peak_memory_gb() * _GIB:.2f} GiB", soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--units", type=int, default=36, help="filters per patch; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--shards", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--out", default="runs/benchmarks", help="folder; default: %(default)s")
    chosen = parser.parse_args(arguments)
    for name in ("units", "steps", "batch_size", "shards"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(chosen, name)} must be at least 1")
    try:
        path = prepare(chosen.out) / "large_model.json"
    except ValueError as error:
        parser.error(f"--out: {error}")
    # Run one program at a time, so that spans time the work itself and no two updates need memory
    # at once.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    trained = train(
        VisionConfig(units=chosen.units),
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        shards=chosen.shards,
    )
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    show(trained, console)
    measured = dataclasses.asdict(trained) | {"peak_memory_gib": peak_memory_gb() * _GIB}
    about = {"versions": versions(), "commit": commit(), "host": host()}
    write_json(path, measured | {"arguments": vars(chosen)} | about)
    console.print(f"written to {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
