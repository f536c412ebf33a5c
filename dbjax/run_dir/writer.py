"""Files of one run: configuration, metrics as they come, and everything at the end."""

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
    """Whether metrics.jsonl has it: evaluations, deaths and returns, no single losses."""
    return row["node"] == "evaluator" or "event" in row


def _line(row: Row) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


@final
class RunWriter:
    """Writes what a run leaves. To be used in a `with` statement.

    metrics.jsonl grows while the run goes on: a header that names the clock, then a line
    for each evaluation, death and return. In virtual time its bytes depend on the configuration
    only.

    What a run before has left stays until this one has its first row: a mistake costs nothing.

    Args:
      rows: of a run that is taken up: those that it left already; asked for with the first row.
      begun: called when what a run before has left goes.
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
        self._metrics: IO[str] | None = None  # once it has begun
        self._events: IO[str] | None = None
        self._torn = False  # a row of metrics could not be written
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
        """A log that grows in events.jsonl."""
        with os_errors_naming(self.path / EVENTS):
            self._events = self._early.open("w", buffering=1)
            return EventLog(self._events.write)

    def listen(self, row: Row) -> None:
        """To be a listener of the run's trace."""
        metrics = self._begin()
        if is_written(row) and not self._torn:
            try:
                metrics.write(_line(row))
            except Exception as error:
                self._torn = True
                _LOG.warning("%s waits for the end: %s", metrics.name, one_line(error))

    def _begin(self) -> IO[str]:
        """The file of metrics; the first time, this run takes the place of the one before."""
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
        for name in (SUMMARY, EVENTS, "trace.json"):  # until this run has them
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
        """Writes the rest: first the parameters and the summary, then what only tells of them.

        Raises:
          OSError: the parameters or the summary cannot be written; names the file.
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
        """Writes the summary; alone it is enough where nobody looks at more."""
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
                        # the step is the number of updates; the "wall time" the run's clock
                        events.add_scalar(name, value, row["updates"], walltime=row["time_s"])
