"""What has to hold of every run, checked against what was seen from outside."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import numpy as np

from tests.simulation import problems, simulate
from tests.simulation.book import Book, Called, History, Violation


def check(ran: Any) -> None:
    """Raises Violation, naming the first invariant that does not hold."""
    for fault in ran.book.faults:
        raise Violation(f"every portion once: {fault}")
    _check_progress(ran)
    _check_snapshots(ran.book)
    if ran.case.method == "sandblaster":
        _check_sandblaster(ran)
        return
    lost = 0
    for shard in ran.book.copies:
        _check_order(ran, shard)
        lost += len(_check_conservation(ran, shard))
    counted = ran.result.summary["lost_pushes"]
    _require(counted == lost, f"conservation: {counted} pushes are counted as lost, not {lost}")
    _check_parameters(ran)


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise Violation(said)


def _check_progress(ran: Any) -> None:
    """When failures have stopped, every main does what it has to."""
    _require(ran.result.summary["time_s"] < simulate.LIMIT_S, "progress: the run did not end")
    if ran.case.method == "sandblaster":
        _require(
            ran.result.summary["iterations"] == ran.config.steps, "progress: iterations are missing"
        )
        return
    for r in range(ran.config.replicas):
        steps = [row["step"] for row in ran.rows if row["node"] == f"replica/{r}" and "step" in row]
        # one that dies when its last push is on its way may have nothing left to do when it is back
        died = any(row["node"] == f"replica/{r}" and row.get("event") == "died" for row in ran.rows)
        ended = max(steps, default=-1) == ran.config.steps - 1
        _require(ended or died, f"progress: replica/{r} ended early")


def _check_snapshots(book: Book) -> None:
    """A snapshot never changes."""
    for snapshot, values in book.values.values():
        for name, value in values.items():
            same = np.array_equal(value, np.asarray(snapshot.params[name]))
            _require(same, f"a snapshot of version {snapshot.version} has changed")


def _check_order(ran: Any, shard: int) -> None:
    """What a replica is shown is never less than before, unless the shard lost it.

    In the order of the answers: a synchronous replica that is told by one shard that it is behind
    gives up the call that waits at another, and that is answered later.
    """
    seen: dict[str, tuple[Called, History]] = {}
    for called in ran.book.answers:
        if called.shard != shard or called.method not in ("fetch", "step"):
            continue
        history = ran.book.history(called.reply)
        _require(called.reply.version == len(history), "a version is not the number of pushes")
        if called.caller in seen:
            last, before = seen[called.caller]
            back = history[: len(before)] != before
            excused = called.lost[1] > last.lost[0]
            _require(
                not back or excused,
                f"versions: {called.caller} saw {len(before)} pushes of shard/{shard}, then "
                f"{len(history)} that do not go on from there",
            )
        seen[called.caller] = called, history


def _check_conservation(ran: Any, shard: int) -> list[tuple[str, int]]:
    """Every acknowledged push is applied once, unless the shard lost it; then it is counted.

    Returns those that the shard does not have.
    """
    calls = [c for c in ran.book.calls if c.shard == shard]
    final, report = (
        next(c.reply for c in reversed(calls) if c.method == m and c.caller == "driver")
        for m in ("peek", "report")
    )
    history = ran.book.history(final)
    losses = ran.book.copies[shard].lost
    name = f"conservation: shard/{shard}"
    _require(len(set(history)) == len(history), f"{name} has applied a push twice: {history}")
    _require(final.version == report.version == len(history), f"{name}: version {final.version}")
    if ran.case.method == "downpour":
        tried: set[tuple[str, int]] = set()  # before the shard last lost its state
        for c in calls:
            if c.method == "push":
                push = c.args[0].replica, c.args[0].sequence
                if c.lost[0] < losses:
                    tried.add(push)
                elif c.answered and push not in tried:
                    _require(push in history, f"{name} has lost {push}, but not its state")
    missing = _missing(ran, history)
    if not losses:
        _require(not missing, f"{name}: {missing} are not there, and it never lost its state")
        _require(report.counts.lost == 0, f"{name} counts {report.counts.lost} lost pushes")
    gaps = [push for push in missing if any(p[0] == push[0] and p[1] > push[1] for p in history)]
    _require(
        report.counts.lost == len(gaps),
        f"{name} counts {report.counts.lost} lost pushes; missing are {gaps}",
    )
    staleness = report.staleness
    _require(sum(staleness.histogram.values()) == len(history), f"{name}: delays of other pushes")
    _require(len(set(staleness.balance())) == 1, f"{name}: the sum of delays")
    return missing


def _missing(ran: Any, history: History) -> list[tuple[str, int]]:
    if ran.case.method == "sgd":  # pushed in the name of the first replica
        names, pushes = [f"replica/{0}"], ran.config.steps
    else:
        names = [f"replica/{r}" for r in range(ran.config.replicas)]
        pushes = math.ceil(ran.config.steps / ran.config.n_push)
    applied = set(history)
    return [push for push in itertools.product(names, range(pushes)) if push not in applied]


def _check_parameters(ran: Any) -> None:
    """Final = initial - rate * (sum of the applied gradients), exactly."""
    finals = {
        c.shard: c.reply for c in ran.book.calls if c.method == "peek" and c.caller == "driver"
    }
    for shard, final in finals.items():
        total = sum(_gradient(ran, *push) for push in ran.book.history(final))
        for piece in final.params.values():
            _require(
                bool(np.all(np.asarray(piece) == problems.RATE * total)),
                f"parameters: shard/{shard} has {np.asarray(piece)}, not {problems.RATE * total}",
            )
    leaves = {float(x) for leaf in jax.tree.leaves(ran.result.params) for x in np.ravel(leaf)}
    shown = {float(x) for f in finals.values() for p in f.params.values() for x in np.ravel(p)}
    _require(leaves == shown, "parameters: the result is not what the shards have")


def _gradient(ran: Any, replica: str, sequence: int) -> float:
    """What a push brings: numbers of its mini-batches, known from the data alone."""
    made, index = ran.config, int(replica.split("/")[1])
    if ran.case.method == "sgd":
        numbers = [problems.number(r, made.replicas, sequence) for r in range(made.replicas)]
        return sum(numbers) / made.replicas
    steps = range(sequence * made.n_push, min((sequence + 1) * made.n_push, made.steps))
    return sum(problems.number(index, made.replicas, step) for step in steps)


def _started_again(ran: Any) -> bool:
    """Whether the coordinator went on from a memo: it asks for old dot products anew."""
    deaths = [row for row in ran.rows if row.get("event") == "died"]
    return bool(ran.result.summary["rewinds"]) or any(r["node"] == "coordinator" for r in deaths)


def _check_sandblaster(ran: Any) -> None:
    """The result is that of an undisturbed run: to the bit in fixed order."""
    calm, got = simulate.calm(ran.case), ran.result
    if ran.config.order == "fixed" and not _started_again(ran):
        same = calm.summary["params_sha256"] == got.summary["params_sha256"]
        _require(same, "sandblaster: in fixed order the result differs from the undisturbed one")
    pairs = zip(jax.tree.leaves(calm.params), jax.tree.leaves(got.params), strict=True)
    close = all(np.allclose(x, y, rtol=1e-3, atol=1e-3) for x, y in pairs)
    _require(close, "sandblaster: the result is far from the undisturbed one")
    _require(bool(ran.book.closed), "sandblaster: no evaluation was seen")
