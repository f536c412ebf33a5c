"""Reads the files that a run leaves in its directory, and validates them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dbjax.arguments import describe, fits
from dbjax.files import damaged_file, format_errors_naming, read_json
from dbjax.run_dir import METRICS, SUMMARY
from dbjax.runtime.trace import Row
from experiments.saved import CONFIG

TRACE = "trace.json"
Numbers = npt.NDArray[Any]
_NAMED = {"name": str}
_ABOUT = {
    "config": {
        "algorithm": str, "runtime": str, "options": {}, "rule": _NAMED, "model": _NAMED,
        "data": _NAMED,
    },
    "versions": {},
    "host": {},
    "commit": str | None,
}  # fmt: skip
_SHOWN = (  # numbers that the page shows
    "updates", "examples", "test_accuracy", "train_accuracy", "test_loss", "train_loss", "wall_s",
    "deaths", "returns", "lost_pushes", "repeated_pushes", "refused_pushes", "bytes_fetched",
    "bytes_pushed", "iterations",
)  # fmt: skip
_COUNTS = ("updates", "examples", "bytes_fetched", "bytes_pushed")


@dataclasses.dataclass(frozen=True)
class Spans:
    """The spans of a run, as arrays with one element per span, sorted by start.

    Attributes:
      nodes: the names of the nodes.
      kinds: the names of the kinds of work, such as "compute".
      node: the index of each span's node in `nodes`.
      kind: the index of each span's kind in `kinds`.
      start_s: the start of each span, in seconds of the run's clock.
      end_s: the end of each span, in seconds of the run's clock.
      dropped: the number of later spans that the run did not keep.
    """

    nodes: tuple[str, ...]
    kinds: tuple[str, ...]
    node: Numbers
    kind: Numbers
    start_s: Numbers
    end_s: Numbers
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.start_s)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The data of one run.

    Attributes:
      label: the name of the run on the page.
      path: its directory.
      clock: "virtual" or "wall".
      state: "finished", "interrupted" (by a signal), or "unfinished": the run is still in progress
        or was killed, so that it has no summary and no spans.
      config: the fields of its config.
      about: the other contents of config.json: versions, host and commit.
      rows: its evaluations, in order of time.
      events: the rows about nodes that failed, came back, or were killed.
      summary: the contents of summary.json; empty if the run is unfinished.
      spans: its spans; none if the run is unfinished or was not traced.
    """

    label: str
    path: Path
    clock: str
    state: Literal["finished", "interrupted", "unfinished"]
    config: dict[str, Any]
    about: dict[str, Any]
    rows: list[Row]
    events: list[Row]
    summary: Row
    spans: Spans

    @property
    def end_s(self) -> float:
        """The time of the last evaluation so far, in seconds of the run's clock."""
        return float(self.rows[-1]["time_s"]) if self.rows else 0.0

    @property
    def warnings(self) -> list[str]:
        """The warnings about the run so far, one line each."""
        so_far = [warning for row in self.rows for warning in row.get("warnings", ())]
        return list(self.summary.get("warnings", so_far))


def read(workdir: str | Path, label: str) -> Run:
    """Reads the run in a directory.

    Args:
      workdir: the directory.
      label: the name of the run on the page.

    Raises:
      ValueError: the directory holds no run, or a file of it is damaged.
    """
    path = Path(workdir)
    if not (path / CONFIG).is_file() or not (path / METRICS).is_file():
        raise ValueError(f"{str(path)!r} is not a dbjax run{_why_not(path)}")
    about = {"versions": {}, "host": {}} | read_json(path / CONFIG, "config")
    with format_errors_naming(path / CONFIG):
        _require(about, _ABOUT)
    header, rows = _metrics(path / METRICS)
    summary = _summary(path / SUMMARY) if (path / SUMMARY).exists() else {}
    ended = bool(summary)  # if it has not, the other files belong to an earlier run
    state: Literal["finished", "interrupted", "unfinished"] = "unfinished"
    if ended:
        state = "interrupted" if summary.get("interrupted") else "finished"
    traced = ended and (path / TRACE).exists()
    return Run(
        label,
        path,
        header["clock"],
        state,
        about.pop("config"),
        about,
        [row for row in rows if row["node"] == "evaluator"],
        [row for row in rows if "event" in row],
        summary,
        _spans(path / TRACE) if traced else spans({}),
    )


def labels(workdirs: Sequence[str | Path]) -> list[str]:
    """Returns the shortest trailing parts of the paths that tell the directories apart."""
    parts = [Path(workdir).resolve().parts for workdir in workdirs]
    count = 1
    while len({path[-count:] for path in parts}) < len(set(parts)):
        count += 1
    return ["/".join(path[-count:]) for path in parts]


def spans(trace: dict[str, Any]) -> Spans:
    """Converts a Chrome trace, which may be empty, to spans.

    Raises:
      ValueError: a span has no start or no duration.
    """
    events = trace.get("traceEvents", ())
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    done = sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"])
    nodes = {name: i for i, name in enumerate(names.values())}
    kinds = {name: i for i, name in enumerate(dict.fromkeys(e["name"] for e in done))}
    start_s = np.array([e["ts"] for e in done], float) / 1e6
    lasted_s = np.array([e["dur"] for e in done], float) / 1e6
    if not np.isfinite(start_s + lasted_s).all():
        raise ValueError("a span has no start or no duration")
    return Spans(
        tuple(nodes),
        tuple(kinds),
        np.array([nodes[names[e["pid"]]] for e in done], int),
        np.array([kinds[e["name"]] for e in done], int),
        start_s,
        start_s + lasted_s,
        trace.get("otherData", {}).get("dropped_spans", 0),
    )


def _metrics(path: Path) -> tuple[Row, list[Row]]:
    """Returns the header and the rows, without a last line that is incomplete."""
    lines = path.read_bytes().splitlines(keepends=True)
    with format_errors_naming(path):
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if not found:
            raise damaged_file(path, "it has no complete line")
        header, *rows = found
        _require(header, {"clock": str})
        for row in rows:
            _require(row, {"time_s": float, "node": str, **_numbers(row)})
            _require_warnings(row)
            _require(row.get("cards_busy_s", {}), dict.fromkeys(row.get("cards_busy_s", {}), float))
    return header, rows


def _summary(path: Path) -> Row:
    found = read_json(path, "interrupted")
    with format_errors_naming(path):
        _require_warnings(found)
        histogram = found.get("staleness_histogram", {})
        _require(found, _numbers(found))
        _require({str(int(k)): n for k, n in histogram.items()}, dict.fromkeys(histogram, int))
        if any(int(k) < 0 or n < 0 for k, n in histogram.items()):
            raise ValueError("staleness_histogram has negative numbers")
        if histogram:
            _require(found["staleness_updates"], {"mean": float, "p95": int, "max": int})
    return found


def _spans(path: Path) -> Spans:
    trace = read_json(path, "traceEvents")
    with format_errors_naming(path):
        if not isinstance(trace["traceEvents"], list):
            raise TypeError("traceEvents must be a list")
        return spans(trace)


def _numbers(row: Row) -> dict[str, type[Any]]:
    """Returns the fields of a row that must be numbers; only counts must never be None."""
    return {
        name: float
        for name in _SHOWN
        if row.get(name) is not None or (name in row and name in _COUNTS)
    }


def _require_warnings(row: Row) -> None:
    """Raises TypeError if a row has `warnings` that are not a list of strings."""
    warnings = row.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(line, str) for line in warnings):
        raise TypeError(f"warnings={warnings!r} must be a list of str")


def _require(value: Any, kinds: Mapping[str, Any]) -> None:
    """Raises TypeError unless a value is an object whose fields have these types."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} must be an object")
    for name, kind in kinds.items():
        if isinstance(kind, Mapping):
            _require(value.get(name), kind)
        elif not fits(value.get(name), kind):
            raise TypeError(f"{name}={value.get(name)!r} must be {describe(kind)}")


def _why_not(path: Path) -> str:
    if not path.is_dir():
        return ": there is no such directory"
    inside = sorted(str(found.parent) for found in path.glob(f"*/{CONFIG}"))
    return f"; it contains the runs {', '.join(inside[:6])}" if inside else f": it has no {CONFIG}"
