"""What nodes record, on its way to the driver: in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np

from dbjax.runtime.trace import Row, Span, Trace

_EVERY_S = 0.2
_HEADER = 1  # lines of a log that say what it is


@final
class Reports:
    """Hands on what a trace and an event log collect.

    Args:
      send: is given rows, spans and lines, in order.

    Attributes:
      lines: of the event log.
    """

    def __init__(self, trace: Trace, send: Callable[[list[Row], list[Span], str], None]) -> None:
        self._trace, self._send = trace, send
        self.lines: list[str] = []
        self._headers = _HEADER
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="reports")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After what there is has been handed on."""
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
    """All there are now; others may add to the list meanwhile."""
    count = len(items)
    found = items[:count]
    del items[:count]
    return found


def _plain(row: Row) -> Row:
    """Numbers instead of jax arrays; waits for those that are being computed."""
    return {
        name: np.asarray(value)[()] if isinstance(value, jax.Array) else value
        for name, value in row.items()
    }
