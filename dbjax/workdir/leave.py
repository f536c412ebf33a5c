"""Files of one run: configuration, metrics as they come, and everything at the end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import IO, Any, final

import jax
import numpy as np

from dbjax.launch import Result
from dbjax.runtime.event_log import EventLog
from dbjax.trace import Row
from dbjax.types import Params
from dbjax.workdir import origin
from dbjax.workdir.chrome_trace import chrome_trace
from dbjax.workdir.files import plain, prepare, write_json, write_text

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


@final
class Workdir:
    """Writes what a run leaves. To be used in a `with` statement.

    metrics.jsonl grows while the run goes on: a header that names the clock, then a line
    for each evaluation. In virtual time its bytes depend on the configuration only.
    """

    def __init__(self, path: str | Path, config: Any, *, clock: str) -> None:
        self.path, self.clock, self._config = prepare(path), clock, plain(config, infinity="inf")
        about = {"versions": origin.versions(), "commit": origin.commit(), "host": origin.host()}
        write_json(self.path / "config.json", {"config": self._config} | about)
        self._metrics = (self.path / METRICS).open("w", buffering=1)
        self._metrics.write(json.dumps({"clock": clock, "time_s": f"seconds of the {clock} clock"}))
        self._metrics.write("\n")
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
        if row["node"] == "evaluator":
            self._metrics.write(json.dumps(plain(row), allow_nan=False) + "\n")

    def finish(self, result: Result) -> None:
        """Writes the rest: events, timeline, summary, final parameters."""
        self._metrics.close()
        self._write_events(result.evaluations)
        trace = chrome_trace(
            result.trace.spans, clock=self.clock, dropped=result.trace.dropped_spans
        )
        write_text(self.path / "trace.json", json.dumps(trace))
        save_params(self.path / "checkpoints" / "final", result.params)
        about = {"config": self._config, "versions": origin.versions()}
        write_json(self.path / "summary.json", result.summary | about)

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


def save_params(path: Path, params: Params) -> None:
    """An Orbax checkpoint; atomic."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, params), force=True)


def load_params(path: Path, like: Params) -> Params:
    """Reads what `save_params` wrote, into the structure of `like`."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), jax.tree.map(np.asarray, like))
