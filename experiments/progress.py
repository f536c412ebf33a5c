"""Shows progress: as a bar on a terminal, elsewhere as occasional log lines."""

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

_LOGGED_EVERY_S = 10.0  # the least wall-clock time between log lines


@contextlib.contextmanager
def progress(label: str, clock: str, until_s: float | None) -> Iterator[Callable[[Row], None]]:
    """Shows the progress of a run while the context is open.

    Args:
      label: the name of the run.
      clock: the name of the run's clock, "virtual" or "wall".
      until_s: the length of the run in seconds of its clock; None: unknown.

    Yields:
      A listener to add to the run's trace.
    """
    if sys.stderr.isatty():
        with _bar(label, clock, until_s) as listen:
            yield listen
    else:
        yield _log(label, clock)


def describe(row: Row) -> str:
    """Summarises an evaluation, such as "1,200 updates, train loss 0.512, hold-out 81.3%"."""
    words = [f"{row['updates']:,} updates"]
    for name, text in (("train_loss", "train loss {:.3f}"), ("test_accuracy", "hold-out {:.1%}")):
        if name in row and math.isfinite(row[name]):
            words.append(text.format(row[name]))
    return ", ".join(words)


@contextlib.contextmanager
def counted(label: str, total: int, what: str) -> Iterator[Callable[[int, str, float], None]]:
    """Shows the progress of several pieces of work: a bar, or a log line when one completes.

    Args:
      label: the name of the work.
      total: the number of pieces.
      what: what the pieces are called, such as "runs".

    Yields:
      A function to call with the number of completed pieces, a description of the latest news, and
      the sum of the completed fractions of all other pieces.
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
    """Shows a progress bar on the terminal.

    Args:
      done: rich's format string for the amount done. Each task also needs the field `state`, which
        is shown after it.
    """
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
