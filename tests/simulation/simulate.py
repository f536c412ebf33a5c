"""Runs a case in virtual time, listens, and checks what has to hold."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import dbjax
from dbjax.monitoring.push_account import account_for_pushes
from tests.simulation import invariants, storage
from tests.simulation.book import Book, Copies, Violation
from tests.simulation.case import Case
from tests.simulation.clusters import checkpoint_every, config, nodes, run, task
from tests.simulation.listening import listening

LIMIT_S = 300.0  # far beyond the last failure


@dataclasses.dataclass
class Ran:
    """A run and what was seen of it."""

    case: Case
    config: Any
    result: dbjax.Result
    book: Book
    rows: list[dict[str, Any]]


def simulate(case: Case) -> Ran:
    """Runs a case.

    Raises:
      Violation: what has to hold does not.
    """
    ran = _run(case)
    invariants.check(ran)
    if case.storage:
        with _violations():
            storage.check(case)
    return ran


def check_deterministic(case: Case) -> None:
    """The same case twice is the same run."""
    first, again = _run(case), _run(case)
    if _bytes(first) != _bytes(again):
        raise Violation("the same case twice is not the same run")


def check_replayable(case: Case) -> None:
    """The event log of a run gives the same bytes again, and tells what became of every push."""
    lines: list[str] = []
    with _violations():
        result = run(
            case,
            checkpoint_every=checkpoint_every(case),
            until_s=LIMIT_S,
            log=dbjax.EventLog(lines.append),
        )
        again = dbjax.replay(task(case), config(case), dbjax.Script(lines))
        account = account_for_pushes(dbjax.Script(lines))
    if again.params_sha256 != result.summary["params_sha256"]:
        raise Violation("the replay has other bytes")
    if account.doubled:
        raise Violation(f"{account.doubled} were applied twice")
    counted, lost = result.summary["lost_pushes"], len(account.lost)
    # Shards also count what died with a shard before its replica was told. Synchronous ones count
    # a step once, which is a push of every replica.
    if (lost > counted) if case.method == "downpour" else (lost and not counted):
        raise Violation(f"{account.lost} were lost, but {counted} are counted")


def calm(case: Case) -> dbjax.Result:
    """The result where nothing goes wrong."""
    quiet = {"deaths": 0, "outages": 0, "links": 0, "backups": 0, "storage": 0}
    never = dict.fromkeys(("duplicates", "checkpoints", "restless", "repeats"), False)
    return _calm(dataclasses.replace(case, **quiet, **never))


@functools.lru_cache(maxsize=64)
def _calm(case: Case) -> dbjax.Result:
    return run(case)


def _run(case: Case) -> Ran:
    made, book, trace = config(case), Book(_copies(case)), dbjax.Trace()
    trace.listeners.append(book.note)
    with listening(book, case), _violations():
        result = run(case, checkpoint_every=checkpoint_every(case), until_s=LIMIT_S, trace=trace)
    return Ran(case, made, result, book, trace.rows)


@contextlib.contextmanager
def _violations() -> Any:
    """No failure of a machine, of the network or of a disk may fail the run."""
    try:
        yield
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {error}") from error


def _copies(case: Case) -> dict[int, Copies]:
    made = config(case)
    name = "replica" if made.replicas == 1 and case.method == "sgd" else "shard"
    shards = [f"{name}/{i}" for i in range(made.shards)]
    return {
        i: Copies([n for n in nodes(case) if n in (s, f"{s}/backup")]) for i, s in enumerate(shards)
    }


def _bytes(ran: Ran) -> str:
    summary = {k: v for k, v in ran.result.summary.items() if k != "wall_s"}
    return repr((summary, ran.rows, ran.book.events))
