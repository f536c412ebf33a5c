"""What a run left, as it lies on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dbjax.trace import Row
from dbjax.workdir import METRICS, SUMMARY
from experiments.saved import CONFIG

TRACE = "trace.json"
Numbers = npt.NDArray[Any]


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


@dataclasses.dataclass(frozen=True)
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
    about = _json(path / CONFIG)
    header, rows = _metrics(path / METRICS)
    summary = _json(path / SUMMARY) if (path / SUMMARY).exists() else {}
    ended = bool(summary)  # else whatever else lies there is of an earlier run
    state: Literal["finished", "interrupted", "unfinished"] = "unfinished"
    if ended:
        state = "interrupted" if summary.get("interrupted") else "finished"
    traced = ended and (path / TRACE).exists()
    try:
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
            spans(_json(path / TRACE) if traced else {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not what a run leaves: {error!r}") from error


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
    return Spans(
        tuple(nodes),
        tuple(kinds),
        np.array([nodes[names[e["pid"]]] for e in done], int),
        np.array([kinds[e["name"]] for e in done], int),
        start_s,
        start_s + np.array([e["dur"] for e in done], float) / 1e6,
        trace.get("otherData", {}).get("dropped_spans", 0),
    )


def _metrics(path: Path) -> tuple[Row, list[Row]]:
    """The header and the rows; a last line that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True)
    try:
        header, *rows = [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not what a run leaves: {error}") from error
    return header, rows


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not what a run leaves: {error}") from error
    return value


def _why_not(path: Path) -> str:
    if not path.is_dir():
        return ": there is no such directory"
    inside = sorted(str(found.parent) for found in path.glob(f"*/{CONFIG}"))
    return f"; there are {', '.join(inside[:6])}" if inside else f": it has no {CONFIG}"
