"""Files of one run: configuration, metrics as they come, and everything at the end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
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

    Args:
      rows: of a run that is taken up: those that it left already.
    """

    def __init__(
        self, path: str | Path, config: Any, *, clock: str, rows: Sequence[Row] = ()
    ) -> None:
        self.path, self.clock, self._config = prepare(path), clock, plain(config, infinity="inf")
        about = {"versions": origin.versions(), "commit": origin.commit(), "host": origin.host()}
        write_json(self.path / "config.json", {"config": self._config} | about)
        header = {"clock": clock, "time_s": f"seconds of the {clock} clock"}
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in (header, *map(plain, rows))]
        write_text(self.path / METRICS, "".join(lines))
        self._metrics = (self.path / METRICS).open("a", buffering=1)
        (self.path / SUMMARY).unlink(missing_ok=True)  # until this run has one
        self._events: IO[str] | None = None
        (self.path / EVENTS).unlink(missing_ok=True)  # of a run that was here before

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def event_log(self) -> EventLog:
        """A log that grows in events.jsonl."""
        self._events = (self.path / EVENTS).open("w", buffering=1)
        return EventLog(self._events.write)

    def listen(self, row: Row) -> None:
        """To be a listener of the run's trace."""
        if is_left(row):
            line = json.dumps(plain(row), allow_nan=False) + "\n"
            try:
                self._metrics.write(line)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._metrics.name) from error

    def finish(self, result: Result) -> None:
        """Writes the rest: events, timeline, summary, final parameters."""
        self._metrics.close()
        self._write_events(result.evaluations)
        trace = chrome_trace(
            result.trace.spans, clock=self.clock, dropped=result.trace.dropped_spans
        )
        write_text(self.path / "trace.json", json.dumps(trace))
        save_params(self.path / "params", result.params)
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
