"""What the page says of runs in words and single numbers."""

from __future__ import annotations

from collections.abc import Sequence

from dbjax.runtime.trace import Row
from experiments.report.read import Run


def sentence(run: Run) -> str:
    """What was trained how, in a line."""
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
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before they read on."""
    found = []
    for run in runs:
        if run.state == "unfinished":
            found.append(
                f"{run.label} has not ended: it goes on, or it was killed. This is what it "
                f"had left by {run.end_s:.4g} {run.clock} seconds. Staleness and spans are written "
                "at the end."
            )
        if run.state == "interrupted":
            found.append(f"{run.label} was interrupted at {run.end_s:.4g} {run.clock} seconds.")
        found += [f"{run.label} {warning}." for warning in run.warnings]
    if len({run.clock for run in runs}) > 1:
        found.append(
            "Some of these runs have a virtual clock and some a real one. Their seconds are not "
            "the same: compare them by updates or examples."
        )
    return found


def numbers(run: Run) -> list[tuple[str, str]]:
    """The last evaluation and the summary, as a table shows them."""
    last: Row = (run.rows[-1] if run.rows else {}) | run.summary
    seconds = f"{run.clock} seconds"
    found = [(seconds, f"{run.end_s:,.4g}")]
    if run.clock == "virtual" and "wall_s" in last:
        found.append(("wall seconds", f"{last['wall_s']:,.4g}"))
    found += [(name, f"{last[name]:,}") for name in ("updates", "examples") if name in last]
    if run.end_s and "updates" in last:
        found.append(("updates a second of the clock", f"{last['updates'] / run.end_s:,.4g}"))
    for name, said, form in (
        ("test_accuracy", "hold-out accuracy", ".2%"),
        ("train_accuracy", "training set accuracy", ".2%"),
        ("test_loss", "hold-out loss", ".4g"),
        ("train_loss", "training loss", ".4g"),
    ):
        if last.get(name) is not None:
            found.append((said, format(last[name], form)))
    if run.summary.get("staleness_histogram"):
        stale = run.summary["staleness_updates"]
        found.append(("staleness in updates: mean", f"{stale['mean']:.4g}"))
        found.append(("staleness: 95 of 100 below, largest", f"{stale['p95']:,}, {stale['max']:,}"))
    for name in ("deaths", "returns", "lost_pushes", "repeated_pushes", "refused_pushes"):
        if last.get(name):
            found.append((name.replace("_", " "), f"{last[name]:,}"))
    return found
