"""What a run left, as it lies on disk."""

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
_SHOWN = (  # numbers that the page has
    "updates", "examples", "test_accuracy", "train_accuracy", "test_loss", "train_loss", "wall_s",
    "deaths", "returns", "lost_pushes", "repeated_pushes", "refused_pushes", "bytes_fetched",
    "bytes_pushed", "iterations",
)  # fmt: skip
_COUNTS = ("updates", "examples", "bytes_fetched", "bytes_pushed")


@dataclasses.dataclass(frozen=True)
class Spans:
    """Who did what when; sorted by beginning.

    Attributes:
      nodes, kinds: names that `node` and `kind` are indices of.
      dropped: how many more there were; they came after these.
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
    """One run.

    Attributes:
      state: "unfinished": it goes on, or was killed: there is no summary, nor spans.
      rows: its evaluations, in order of time.
      events: deaths, returns and kills.
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
        """As far as is known."""
        return float(self.rows[-1]["time_s"]) if self.rows else 0.0

    @property
    def warnings(self) -> list[str]:
        """What went wrong, a line each; as far as is known."""
        so_far = [warning for row in self.rows for warning in row.get("warnings", ())]
        return list(self.summary.get("warnings", so_far))


def read(workdir: str | Path, label: str) -> Run:
    """The run in a directory.

    Raises:
      ValueError: there is none, or a file is not what a run leaves.
    """
    path = Path(workdir)
    if not (path / CONFIG).is_file() or not (path / METRICS).is_file():
        raise ValueError(f"{str(path)!r} is no run{_why_not(path)}")
    about = {"versions": {}, "host": {}} | read_json(path / CONFIG, "config")
    with format_errors_naming(path / CONFIG):
        _require(about, _ABOUT)
    header, rows = _metrics(path / METRICS)
    summary = _summary(path / SUMMARY) if (path / SUMMARY).exists() else {}
    ended = bool(summary)  # else whatever else lies there is of an earlier run
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
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [Path(workdir).resolve().parts for workdir in workdirs]
    count = 1
    while len({path[-count:] for path in parts}) < len(set(parts)):
        count += 1
    return ["/".join(path[-count:]) for path in parts]


def spans(trace: dict[str, Any]) -> Spans:
    """Of a Chrome trace; none of an empty one."""
    events = trace.get("traceEvents", ())
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    done = sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"])
    nodes = {name: i for i, name in enumerate(names.values())}
    kinds = {name: i for i, name in enumerate(dict.fromkeys(e["name"] for e in done))}
    start_s = np.array([e["ts"] for e in done], float) / 1e6
    lasted_s = np.array([e["dur"] for e in done], float) / 1e6
    if not np.isfinite(start_s + lasted_s).all():
        raise ValueError("a span has no beginning or no duration")
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
    """The header and the rows; a last line that was cut off is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    with format_errors_naming(path):
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if not found:
            raise damaged_file(path, "it has no whole line")
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
            raise ValueError("staleness_histogram has numbers below 0")
        if histogram:
            _require(found["staleness_updates"], {"mean": float, "p95": int, "max": int})
    return found


def _spans(path: Path) -> Spans:
    trace = read_json(path, "traceEvents")
    with format_errors_naming(path):
        if not isinstance(trace["traceEvents"], list):
            raise TypeError("its traceEvents are no list")
        return spans(trace)


def _numbers(row: Row) -> dict[str, type[Any]]:
    """The fields of a row that must be numbers. Only counts are never None."""
    return {
        name: float
        for name in _SHOWN
        if row.get(name) is not None or (name in row and name in _COUNTS)
    }


def _require_warnings(row: Row) -> None:
    """Raises TypeError unless `warnings`, where a row has it, is a list of strings."""
    warnings = row.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(line, str) for line in warnings):
        raise TypeError(f"warnings={warnings!r} must be a list of str")


def _require(value: Any, kinds: Mapping[str, Any]) -> None:
    """Raises TypeError unless a value is an object with such fields."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    for name, kind in kinds.items():
        if isinstance(kind, Mapping):
            _require(value.get(name), kind)
        elif not fits(value.get(name), kind):
            raise TypeError(f"{name}={value.get(name)!r} must be {describe(kind)}")


def _why_not(path: Path) -> str:
    if not path.is_dir():
        return ": there is no such directory"
    inside = sorted(str(found.parent) for found in path.glob(f"*/{CONFIG}"))
    return f"; there are {', '.join(inside[:6])}" if inside else f": it has no {CONFIG}"
