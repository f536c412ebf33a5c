"""Sends what nodes record to the driver, in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np

from dbjax.runtime.trace import Row, Span, Trace

_EVERY_S = 0.2
_HEADER = 1  # the number of lines at the beginning of a log that name its format


@final
class Reports:
    """Sends what a trace and an event log collect, and removes it from them.

    Args:
      trace: the trace of this process.
      send: is called with rows, spans and lines of the event log, in order.

    Attributes:
      lines: the lines of the event log that have not been sent.
    """

    def __init__(self, trace: Trace, send: Callable[[list[Row], list[Span], str], None]) -> None:
        self._trace, self._send = trace, send
        self.lines: list[str] = []
        self._headers = _HEADER
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="reports")

    def start(self) -> None:
        """Starts a thread that sends a batch every 0.2 s."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, and sends everything that is left."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._flush()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._flush()

    def _flush(self) -> None:
        rows, spans = _taken(self._trace.rows), _taken(self._trace.spans)
        lines = _taken(self.lines)
        lines, self._headers = lines[self._headers :], max(0, self._headers - len(lines))
        if rows or spans or lines:
            self._send([_plain(row) for row in rows], spans, "".join(lines))


def _taken(items: list[Any]) -> list[Any]:
    """Removes and returns the items of a list, to which other threads may add meanwhile."""
    count = len(items)
    found = items[:count]
    del items[:count]
    return found


def _plain(row: Row) -> Row:
    """Returns a row with NumPy values in place of jax arrays; waits for those being computed."""
    return {
        name: np.asarray(value)[()] if isinstance(value, jax.Array) else value
        for name, value in row.items()
    }
