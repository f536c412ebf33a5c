"""The trace of a run in memory: rows of metrics, and spans that say which node did what when."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.errors import one_line

Row = dict[str, Any]
_LOG = logging.getLogger("dbjax")
_PLAIN = (float, int, str)  # isinstance(..., jax.Array) is slow
_LATEST = 256  # how many of the latest rows may hold scalars that jax is still computing


class NotBegun(OSError):
    """A file of the run cannot be written. A listener that raises this error ends the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """An interval in which a node was busy.

    Attributes:
      node: the name of the node.
      kind: what it was busy with: "compute", or the name of a method that was called or served.
      start_s: when it began, in seconds on the run's clock.
      end_s: when it ended, in seconds on the run's clock.
    """

    node: str
    kind: str
    start_s: float
    end_s: float


@dataclasses.dataclass
class Trace:
    """Collects the rows and spans of a run; any thread may add to it.

    Attributes:
      max_spans: the largest number of spans to collect; 0: none.
      rows: the rows of metrics. Each has "time_s" and "node" besides its own values. Scalars that
        jax may still be computing become Python numbers a few hundred rows later.
      resumed_rows: the number of rows, at the beginning, that belong to the earlier part of a
        resumed run.
      spans: the spans, at most `max_spans` of them.
      dropped_spans: the number of further spans, which were not collected; 0 if `max_spans` is 0.
      listeners: functions that are called with every row as it comes. One that raises an error is
        removed, with a warning.
    """

    max_spans: int = 0
    rows: list[Row] = dataclasses.field(default_factory=list)
    resumed_rows: int = 0
    spans: list[Span] = dataclasses.field(default_factory=list)
    dropped_spans: int = 0
    listeners: list[Callable[[Row], None]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._latest: collections.deque[Row] = collections.deque()
        self._stops: list[Callable[[], object]] = []
        self._heard = 0  # how many of the next rows `_heard_by` have been called with before
        self._heard_by: tuple[Callable[[Row], None], ...] = ()

    def resume_after(self, rows: Iterable[Row]) -> None:
        """Sets the rows of the earlier part of a resumed run, in place of those set before."""
        before = list(rows)
        self.rows[: self.resumed_rows] = before
        self.resumed_rows = len(before)

    def begin_again(self, before: int) -> None:
        """Forgets the rows of a run that begins again and will record the same rows.

        The present listeners, which have been called with them, will not be called with them again.

        Args:
          before: how many rows there were before the run, not counting `resumed_rows`.
        """
        rows = self.rows[self.resumed_rows :]
        self.rows[:], self.resumed_rows, self._heard = rows[:before], 0, len(rows) - before
        self._heard_by = tuple(self.listeners)

    def before(self) -> Iterator[Row]:
        """Yields the rows of the earlier part of a resumed run.

        It looks at them only when the iteration begins, so it may be called before they are set.
        """
        yield from self.rows[: self.resumed_rows]

    def record(self, node: str, time_s: float, values: Row) -> None:
        """Adds a row, and calls the listeners with it.

        Args:
          node: the name of the node that records it.
          time_s: the time on the run's clock, in seconds.
          values: the metrics of the row.

        Raises:
          NotBegun: a listener raised it.
        """
        row = {"time_s": time_s, "node": node, **values}
        self.rows.append(row)
        heard = self._heard > 0
        self._heard -= heard
        for listen in tuple(self.listeners):
            if heard and listen in self._heard_by:
                continue
            try:
                listen(row)
            except NotBegun:
                raise
            except Exception as error:
                self.unlisten(listen)
                name = getattr(listen, "__qualname__", repr(listen))
                _LOG.warning("the listener %s failed and is removed: %s", name, one_line(error))
        self._latest.append(row)
        if len(self._latest) > _LATEST:
            _make_plain(self._latest.popleft())

    @contextlib.contextmanager
    def listening(self, listen: Callable[[Row], None]) -> Iterator[None]:
        """Makes `listen` a listener during the block, unless it fails or is removed before."""
        self.listeners.append(listen)
        try:
            yield
        finally:
            self.unlisten(listen)

    def stop(self) -> None:
        """Ends the run that records into this trace soon, if one does; a listener may call it."""
        for stop in tuple(self._stops):
            stop()

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Makes `Trace.stop` call `stop` during the block."""
        self._stops.append(stop)
        try:
            yield
        finally:
            self._stops.remove(stop)

    def unlisten(self, listen: Callable[[Row], None]) -> None:
        """Removes a listener, if it still is one."""
        if listen in self.listeners:
            self.listeners.remove(listen)

    def take(self, rows: Iterable[Row], spans: Iterable[Span]) -> None:
        """Adds what the trace of another process has collected."""
        for row in rows:
            values = dict(row)
            self.record(values.pop("node"), values.pop("time_s"), values)
        for span in spans:
            self.span(span.node, span.kind, span.start_s, span.end_s)

    def span(self, node: str, kind: str, start_s: float, end_s: float) -> None:
        """Adds a span, or counts it as dropped if there are `max_spans` already.

        If `max_spans` is 0, it does nothing.
        """
        if len(self.spans) < self.max_spans:
            self.spans.append(Span(node, kind, start_s, end_s))
        elif self.max_spans:
            self.dropped_spans += 1


def _make_plain(row: Row) -> None:
    """Replaces jax scalars in a row by Python numbers, since each array takes kilobytes."""
    for name, value in row.items():
        if (
            type(value) not in _PLAIN
            and isinstance(value, jax.Array)
            and value.ndim == 0
            and jnp.issubdtype(value.dtype, np.number)
            and not value.is_deleted()
        ):
            row[name] = value.item()
