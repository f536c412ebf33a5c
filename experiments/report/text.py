"""The texts and single numbers of the page."""

from __future__ import annotations

from collections.abc import Sequence

from dbjax.runtime.trace import Row
from experiments.report.read import Run


def sentence(run: Run) -> str:
    """Returns a line that says what was trained, and how."""
    config = run.config
    options = {"replicas": 1, "shards": 1} | config["options"]
    where = {"virtual": "in virtual time", "threads": "in threads", "ray": "in processes on Ray"}
    return (
        f"{config['algorithm']} with {count(options['replicas'], 'replica')} and "
        f"{count(options['shards'], 'shard')}, rule {config['rule']['name']}, "
        f"{config['model']['name']} on {config['data']['name']}, "
        f"{where.get(config['runtime'], config['runtime'])}"
    )


def count(number: int, what: str) -> str:
    """Returns a number with a noun, which gets an "s" unless the number is 1."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """Returns what the reader must know about the runs before reading the page."""
    found = []
    for run in runs:
        if run.state == "unfinished":
            found.append(
                f"{run.label} has not ended: it is still running, or was killed. This page has its "
                f"data up to {run.end_s:.4g} {run.clock} seconds. Staleness and spans are written "
                "when a run ends."
            )
        if run.state == "interrupted":
            found.append(f"{run.label} was interrupted at {run.end_s:.4g} {run.clock} seconds.")
        found += [f"{run.label} {warning}." for warning in run.warnings]
    if len({run.clock for run in runs}) > 1:
        found.append(
            "Some of these runs have a virtual clock, and others a real one. Their seconds are not "
            "comparable: compare the runs by updates or examples."
        )
    return found


def numbers(run: Run) -> list[tuple[str, str]]:
    """Returns the last evaluation and the summary as rows (name, value) of a table."""
    last: Row = (run.rows[-1] if run.rows else {}) | run.summary
    seconds = f"{run.clock} seconds"
    found = [(seconds, f"{run.end_s:,.4g}")]
    if run.clock == "virtual" and "wall_s" in last:
        found.append(("wall seconds", f"{last['wall_s']:,.4g}"))
    found += [(name, f"{last[name]:,}") for name in ("updates", "examples") if name in last]
    if run.end_s and "updates" in last:
        rate = f"{last['updates'] / run.end_s:,.4g}"
        found.append(("updates per second of the run's clock", rate))
    for name, message, form in (
        ("test_accuracy", "hold-out accuracy", ".2%"),
        ("train_accuracy", "training set accuracy", ".2%"),
        ("test_loss", "hold-out loss", ".4g"),
        ("train_loss", "training loss", ".4g"),
    ):
        if last.get(name) is not None:
            found.append((message, format(last[name], form)))
    if run.summary.get("staleness_histogram"):
        stale = run.summary["staleness_updates"]
        found.append(("mean staleness (updates)", f"{stale['mean']:.4g}"))
        found.append(("staleness: 95th percentile, maximum", f"{stale['p95']:,}, {stale['max']:,}"))
    for name in ("deaths", "returns", "lost_pushes", "repeated_pushes", "refused_pushes"):
        if last.get(name):
            found.append((name.replace("_", " "), f"{last[name]:,}"))
    return found
