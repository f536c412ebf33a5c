"""Writes the files of a run: its config and metrics as it goes, all else when it ends."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, final

from dbjax.checkpoint.params import save_params
from dbjax.errors import best_effort, one_line
from dbjax.files import os_errors_naming, plain, prepare, write_json, write_text
from dbjax.run_dir import provenance
from dbjax.run_dir.chrome_trace import chrome_trace
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.trace import NotBegun, Row, Trace
from dbjax.train import Result

_LOG = logging.getLogger("dbjax")

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
SUMMARY = "summary.json"


def is_written(row: Row) -> bool:
    """Whether a row goes into metrics.jsonl: evaluations and node failures, but no step losses."""
    return row["node"] == "evaluator" or "event" in row


def _line(row: Row) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


@final
class RunWriter:
    """Writes a run directory. Use it as a context manager.

    metrics.jsonl grows during the run: a header that names the clock, then a line for each
    evaluation and each time a node fails or comes back. In virtual time its bytes depend only on
    the config.

    The files of a previous run in the same directory stay until this run records its first row, so
    that a run that fails at once destroys nothing.

    Args:
      path: the run directory; created if it is missing.
      config: the run's config, a pytree of plain values, written to config.json and the summary.
      clock: the name of the run's clock, "virtual" or "wall".
      rows: for a resumed run, the rows recorded before it was interrupted. They are read only when
        this run records its first row.
      begun: called just before the files of the previous run are removed.

    Raises:
      ValueError: the directory cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        clock: str,
        rows: Iterable[Row] = (),
        begun: Callable[[], object] = lambda: None,
    ) -> None:
        self.path, self.clock, self._config = prepare(path), clock, plain(config, infinity="inf")
        self._rows, self._begun, self._begins = rows, begun, threading.Lock()
        self._metrics: IO[str] | None = None  # None until the first row
        self._events: IO[str] | None = None
        self._torn = False  # a row could not be written to metrics.jsonl
        self._early = self.path / f".{EVENTS}"

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                with best_effort(file.name):
                    file.close()
        self._early.unlink(missing_ok=True)

    def event_log(self) -> EventLog:
        """Returns an event log that is written to events.jsonl during the run.

        Raises:
          OSError: the file cannot be created; names the file.
        """
        with os_errors_naming(self.path / EVENTS):
            self._events = self._early.open("w", buffering=1)
            return EventLog(self._events.write)

    def listen(self, row: Row) -> None:
        """Writes a row of the run's trace; add this method to `Trace.listeners`.

        If a row cannot be written (the disk may be full), logs a warning, and `finish` writes the
        metrics again from the trace.

        Raises:
          NotBegun: this is the first row, and the run directory cannot be set up.
        """
        metrics = self._begin()
        if is_written(row) and not self._torn:
            try:
                metrics.write(_line(row))
            except Exception as error:
                self._torn = True
                message = "%s is incomplete until the run ends: %s"
                _LOG.warning(message, metrics.name, one_line(error))

    def _begin(self) -> IO[str]:
        """Returns the open metrics file; the first call replaces the previous run's files."""
        with self._begins:
            if self._metrics is None:
                try:
                    self._begun()
                    self._write_beginning()
                    self._metrics = (self.path / METRICS).open("a", buffering=1)
                except OSError as error:
                    raise NotBegun(error.errno, error.strerror, error.filename) from error
            return self._metrics

    def _write_beginning(self) -> None:
        about = {
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "host": provenance.host(),
        }
        write_json(self.path / "config.json", {"config": self._config} | about)
        for name in (SUMMARY, EVENTS, "trace.json"):  # of the previous run
            (self.path / name).unlink(missing_ok=True)
        for name in ("params", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self._write_metrics(self._rows)
        if self._events is not None:
            os.replace(self._early, self.path / EVENTS)

    def _write_metrics(self, rows: Iterable[Row]) -> None:
        header = {"clock": self.clock, "time_s": f"seconds of the {self.clock} clock"}
        lines = [_line(header), *(_line(row) for row in rows if is_written(row))]
        write_text(self.path / METRICS, "".join(lines))

    def finish(self, result: Result) -> None:
        """Writes parameters and summary, then the TensorBoard events and trace.json.

        Args:
          result: the result of the run.

        Raises:
          OSError: the parameters or the summary cannot be written; names the file. A failure to
            write the other files is only logged.
        """
        self._begin()
        try:
            save_params(self.path / "params", result.params)
        finally:
            self.summarise(result)
        if self._torn:
            with best_effort(str(self.path / METRICS)):
                self._write_metrics(result.trace.rows)
        with best_effort(str(self.path / "tensorboard")):
            self._write_events(result.evaluations)
        with best_effort(str(self.path / "trace.json")):
            self._write_trace(result.trace)

    def _write_trace(self, trace: Trace) -> None:
        spans = chrome_trace(trace.spans, clock=self.clock, dropped=trace.dropped_spans)
        write_text(self.path / "trace.json", json.dumps(spans))

    def summarise(self, result: Result) -> None:
        """Writes summary.json only, which `finish` does as well."""
        about = {"config": self._config, "versions": provenance.versions()}
        staleness = {"staleness_histogram": result.staleness_histogram}
        write_json(self.path / SUMMARY, result.summary | staleness | about)

    def _write_events(self, rows: list[Row]) -> None:
        import tensorboardX

        directory = self.path / "tensorboard"
        with tensorboardX.SummaryWriter(str(directory), write_to_disk=True) as events:
            for row in rows:
                for name, value in row.items():
                    if isinstance(value, (int, float)) and math.isfinite(value):
                        # The step is the number of updates, the "wall time" the run's clock.
                        events.add_scalar(name, value, row["updates"], walltime=row["time_s"])
