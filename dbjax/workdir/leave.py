"""Files of one run: configuration, metrics as they come, and everything at the end."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, final

from dbjax.checkpoint.params import save_params
from dbjax.launch import Result
from dbjax.runtime.event_log import EventLog
from dbjax.trace import Row
from dbjax.workdir import origin
from dbjax.workdir.chrome_trace import chrome_trace
from dbjax.workdir.files import plain, prepare, write_json, write_text

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
SUMMARY = "summary.json"


def is_left(row: Row) -> bool:
    """Whether metrics.jsonl has it: evaluations, deaths and returns, no single losses."""
    return row["node"] == "evaluator" or "event" in row


@final
class Workdir:
    """Writes what a run leaves. To be used in a `with` statement.

    metrics.jsonl grows while the run goes on: a header that names the clock, then a line
    for each evaluation, death and return. In virtual time its bytes depend on the configuration
    only.

    What a run before has left stays until this one has its first row: a mistake costs nothing.

    Args:
      rows: of a run that is taken up: those that it left already.
      begun: called when what a run before has left goes.
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        clock: str,
        rows: Sequence[Row] = (),
        begun: Callable[[], object] = lambda: None,
    ) -> None:
        self.path, self.clock, self._config = prepare(path), clock, plain(config, infinity="inf")
        self._rows, self._begun, self._begins = rows, begun, threading.Lock()
        self._metrics: IO[str] | None = None  # once it has begun
        self._events: IO[str] | None = None
        self._early = self.path / f".{EVENTS}"

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()
        self._early.unlink(missing_ok=True)

    def event_log(self) -> EventLog:
        """A log that grows in events.jsonl."""
        self._events = self._early.open("w", buffering=1)
        return EventLog(self._events.write)

    def listen(self, row: Row) -> None:
        """To be a listener of the run's trace."""
        metrics = self._begin()
        if is_left(row):
            line = json.dumps(plain(row), allow_nan=False) + "\n"
            try:
                metrics.write(line)
            except OSError as error:
                raise OSError(error.errno, error.strerror, metrics.name) from error

    def _begin(self) -> IO[str]:
        """The file of metrics; the first time, this run takes the place of the one before."""
        with self._begins:
            if self._metrics is None:
                self._begun()
                self._write_beginning()
                self._metrics = (self.path / METRICS).open("a", buffering=1)
            return self._metrics

    def _write_beginning(self) -> None:
        about = {"versions": origin.versions(), "commit": origin.commit(), "host": origin.host()}
        write_json(self.path / "config.json", {"config": self._config} | about)
        (self.path / SUMMARY).unlink(missing_ok=True)  # until this run has one
        header = {"clock": self.clock, "time_s": f"seconds of the {self.clock} clock"}
        rows = (header, *map(plain, self._rows))
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        write_text(self.path / METRICS, "".join(lines))
        (self.path / EVENTS).unlink(missing_ok=True)
        if self._events is not None:
            os.replace(self._early, self.path / EVENTS)

    def finish(self, result: Result) -> None:
        """Writes the rest: events, timeline, summary, final parameters."""
        self._begin().close()
        self._write_events(result.evaluations)
        trace = chrome_trace(
            result.trace.spans, clock=self.clock, dropped=result.trace.dropped_spans
        )
        write_text(self.path / "trace.json", json.dumps(trace))
        save_params(self.path / "params", result.params)
        self.summarise(result)

    def summarise(self, result: Result) -> None:
        """Writes the summary; alone it is enough where nobody looks at more."""
        about = {"config": self._config, "versions": origin.versions()}
        staleness = {"staleness_histogram": result.staleness_histogram}
        write_json(self.path / SUMMARY, result.summary | staleness | about)

    def _write_events(self, rows: list[Row]) -> None:
        import tensorboardX

        directory = self.path / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        with tensorboardX.SummaryWriter(str(directory), write_to_disk=True) as events:
            for row in rows:
                for name, value in row.items():
                    if isinstance(value, (int, float)) and math.isfinite(value):
                        # the step is the number of updates; the "wall time" the run's clock
                        events.add_scalar(name, value, row["updates"], walltime=row["time_s"])
