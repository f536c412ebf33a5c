"""What a run leaves in memory: rows of metrics, and spans of who did what when."""

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
_LATEST = 256  # rows whose values may still be computed, as jax does meanwhile


class NotBegun(OSError):
    """What a run is to leave cannot be written: a listener that raises this ends the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """`node` was busy with `kind` from `start_s` to `end_s` on the run's clock."""

    node: str
    kind: str
    start_s: float
    end_s: float


@dataclasses.dataclass
class Trace:
    """Collects rows and spans; any thread may add to it.

    Attributes:
      rows: metrics, each with "time_s" and "node" beside its own values. Scalars that jax may
        still be computing become numbers a few hundred rows later.
      taken_up: how many of the rows, the first ones, are of the run that this one takes up.
      spans: at most `max_spans` of them; `dropped_spans` counts the rest.
      listeners: called with every row as it comes; one that fails is left out from then on.
    """

    max_spans: int = 0
    rows: list[Row] = dataclasses.field(default_factory=list)
    resumed_rows: int = 0
    spans: list[Span] = dataclasses.field(default_factory=list)
    dropped_spans: int = 0
    listeners: list[Callable[[Row], None]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._latest: collections.deque[Row] = collections.deque()

    def resume_after(self, rows: Iterable[Row]) -> None:
        """The run goes on after these rows, and after no others that it was to go on after."""
        before = list(rows)
        self.rows[: self.resumed_rows] = before
        self.resumed_rows = len(before)

    def before(self) -> Iterator[Row]:
        """The rows that the run goes on after; to be made before it is known which they are."""
        yield from self.rows[: self.resumed_rows]

    def record(self, node: str, time_s: float, values: Row) -> None:
        row = {"time_s": time_s, "node": node, **values}
        self.rows.append(row)
        for listen in tuple(self.listeners):
            try:
                listen(row)
            except NotBegun:
                raise
            except Exception as error:
                self.unlisten(listen)
                name = getattr(listen, "__qualname__", repr(listen))
                _LOG.warning("%s hears no more of the run: %s", name, one_line(error))
        self._latest.append(row)
        if len(self._latest) > _LATEST:
            _make_plain(self._latest.popleft())

    @contextlib.contextmanager
    def listening(self, listen: Callable[[Row], None]) -> Iterator[None]:
        """In the block `listen` is called with every row, unless it fails or is left out."""
        self.listeners.append(listen)
        try:
            yield
        finally:
            self.unlisten(listen)

    def unlisten(self, listen: Callable[[Row], None]) -> None:
        """Leaves a listener out, if it is still one."""
        if listen in self.listeners:
            self.listeners.remove(listen)

    def span(self, node: str, kind: str, start_s: float, end_s: float) -> None:
        if len(self.spans) < self.max_spans:
            self.spans.append(Span(node, kind, start_s, end_s))
        else:
            self.dropped_spans += 1


def _make_plain(row: Row) -> None:
    """Scalars of jax become Python's numbers: an array for each takes kilobytes."""
    for name, value in row.items():
        if (
            isinstance(value, jax.Array)
            and value.ndim == 0
            and jnp.issubdtype(value.dtype, np.number)
            and not value.is_deleted()
        ):
            row[name] = value.item()
