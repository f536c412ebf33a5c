"""Progress of a run: a live line on a terminal, else a line of log now and then."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

from dbjax.runtime.trace import Row

_LOGGED_EVERY_S = 10.0  # seconds of the wall


@contextlib.contextmanager
def progress(label: str, clock: str, until_s: float | None) -> Iterator[Callable[[Row], None]]:
    """Gives a listener for the run's trace."""
    if sys.stderr.isatty():
        with _bar(label, clock, until_s) as listen:
            yield listen
    else:
        yield _log(label, clock)


def describe(row: Row) -> str:
    """An evaluation in a few words."""
    words = [f"{row['updates']:,} updates"]
    for name, text in (("train_loss", "train loss {:.3f}"), ("test_accuracy", "hold-out {:.1%}")):
        if name in row and math.isfinite(row[name]):
            words.append(text.format(row[name]))
    return ", ".join(words)


@contextlib.contextmanager
def counted(label: str, total: int, what: str) -> Iterator[Callable[[int, str, float], None]]:
    """A bar on a terminal, else a line of log whenever one more of `total` is done.

    It is told how many are done, what was seen last, and what the others have done together.
    """
    if sys.stderr.isatty():
        with bar(f"{{task.completed:.1f}} of {{task.total}} {what}") as drawn:
            task = drawn.add_task(label, total=total, state="")
            yield lambda done, last, part: drawn.update(task, completed=done + part, state=last)
        return
    logged = 0

    def log(done: int, last: str, part: float) -> None:
        nonlocal logged
        if done > logged:
            logged = done
            logging.getLogger("dbjax").info("%s: %d of %d %s, %s", label, done, total, what, last)

    yield log


@contextlib.contextmanager
def bar(done: str) -> Iterator[rich.progress.Progress]:
    """A live line on the terminal: what is done, in the words of `done`, and the task's `state`."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn(done),
        rich.progress.TextColumn("{task.fields[state]}"),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as drawn:
        yield drawn


@contextlib.contextmanager
def _bar(label: str, clock: str, until_s: float | None) -> Iterator[Callable[[Row], None]]:
    with bar("{task.completed:.0f} {task.fields[clock]} s") as drawn:
        task = drawn.add_task(label, total=until_s, state="compiling", clock=clock)

        def listen(row: Row) -> None:
            if row["node"] == "evaluator":
                drawn.update(task, completed=row["time_s"], state=describe(row))

        yield listen


def _log(label: str, clock: str) -> Callable[[Row], None]:
    last_s = -math.inf

    def listen(row: Row) -> None:
        nonlocal last_s
        if row["node"] == "evaluator" and time.monotonic() - last_s > _LOGGED_EVERY_S:
            last_s = time.monotonic()
            logging.getLogger("dbjax").info(
                "%s: %.1f %s s, %s", label, row["time_s"], clock, describe(row)
            )

    return listen
