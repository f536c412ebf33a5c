"""The page: one HTML file with its styles, scripts and numbers inside."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbjax.files import format_errors_naming
from dbjax.monitoring.fault_injection import kills
from dbjax.run_dir import METRICS, SUMMARY
from dbjax.runtime.trace import Row
from experiments.report import busy, laws
from experiments.report.configuration import configuration, origin
from experiments.report.read import TRACE, Run
from experiments.report.timeline import timeline, with_deaths
from experiments.report.words import count, numbers, sentence, warnings
from experiments.saved import CONFIG

BLOCKS = 100_000  # that the timelines of a page hold together
_DEATHS = 200  # that are listed
_HEAD_BYTES = 100_000  # more than stands before a page's main part
_PARTS = ("page.css", "charts.js", "timeline.js", "page.js")


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    here, about = Path(__file__).parent, data(runs)
    parts = {name: (here / name).read_text() for name in _PARTS}
    parts |= {"title": html.escape(about["title"]), "data": embedded(about)}
    template = (here / "page.html").read_text()
    return re.sub(r"/\*([\w.]+)\*/", lambda found: parts[found[1]], template)


def is_page(path: Path) -> bool:
    """Whether a file is a page of this command, or is empty."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or (head.startswith(b"<!doctype html>") and b'<main id="page"></main>' in head)


def embedded(value: Any) -> str:
    """JSON that no HTML parser takes for a tag."""
    text = json.dumps(_short(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def data(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page's scripts draw."""
    traced = [run for run in runs if len(run.spans)]
    without = ", ".join(run.label for run in runs if run not in traced)
    return {
        "title": " and ".join(run.label for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        "warnings": warnings(runs),
        "runs": [_read(run, BLOCKS // max(1, len(traced))) for run in runs],
        "untraced": f"No spans were left by: {without}. They are written at the end of a run with "
        "max_spans above 0.",
        "configuration": configuration(runs),
        "origin": origin(runs),
    }


def _read(run: Run, blocks: int) -> dict[str, Any]:
    """What is shown of a run; what is wrong with a file of it is said of that file."""
    config, metrics = (format_errors_naming(run.path / name) for name in (CONFIG, METRICS))
    summary, trace = (format_errors_naming(run.path / name) for name in (SUMMARY, TRACE))
    with config:
        found: dict[str, Any] = {
            "label": run.label,
            "clock": run.clock,
            "state": run.state,
            "end_s": run.end_s,
            "said": sentence(run),
        }
    with metrics:
        rows = columns(run.rows)
        cards = busy.cards(run.rows)
        deaths = [[k.node, k.at_s, k.back_after_s] for k in kills(run.events)[:_DEATHS]]
        found |= {"rows": rows, "deaths": deaths, "deaths_said": _deaths_said(run)}
    with summary:
        found |= {"numbers": numbers(run), "staleness": staleness(run), "bytes": moved(run)}
    with trace:
        drawn = _timeline(run, blocks) if len(run.spans) else None
        shares = [_busy(one) for one in (*busy.nodes(run), *cards)]
        found |= {"timeline": drawn, "busy": shares, "busy_said": _busy_said(run)}
    return found


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Each number of the evaluations, as it grows."""
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, int | float)
    )
    return {name: [row.get(name) for row in rows] for name in names}


def staleness(run: Run) -> dict[str, Any]:
    """The histogram and the law beside it."""
    histogram = {int(k): n for k, n in run.summary.get("staleness_histogram", {}).items()}
    law = laws.law(run)
    bars = laws.bars(histogram, law.shares)
    total = sum(histogram.values())
    note = f"{total:,} pushes."
    if bars and bars[-1].last > bars[-1].first + (bars[0].last - bars[0].first):
        last = bars[-1]
        note += f" The last bar holds all of {last.first:,} to {last.last:,} ({last.count:,})."
    if not total:
        note = "No push was counted." if run.summary else "The histogram is written at the end."
        if run.summary and "staleness_histogram" not in run.summary:
            note = "This run left no histogram: it is of an earlier version of dbjax."
    return {
        "bars": [dataclasses.asdict(bar) for bar in bars],
        "mean": sum(k * n for k, n in histogram.items()) / total if total else None,
        "said": law.said,
        "note": note,
        "predicted": law.shares is not None,
    }


def _busy(one: busy.Busy) -> dict[str, Any]:
    return {
        "name": one.name,
        "mean": one.mean,
        "least": min(one.shares),
        "most": max(one.shares),
        "count": len(one.shares),
        "times_s": one.times_s,
        "over_time": one.over_time,
        "drawn": not one.name.startswith("cards of"),
    }


def _busy_said(run: Run) -> str:
    if not len(run.spans) and not any("cards_busy_s" in row for row in run.rows):
        return "Nothing is known: this run left no spans, from which it is reckoned."
    begin_s, end_s = busy.extent(run)
    said = f"From spans between {begin_s:.4g} and {end_s:.4g} s"
    said += f", in {busy.BINS} equal parts" if len(run.spans) else ""
    if run.spans.dropped:
        said += f"; later ones were not kept ({run.spans.dropped:,})"
    if run.clock == "wall":
        return f"{said}. Network cards are real here, and nobody measures them."
    if not any("cards_busy_s" in row for row in run.rows):
        return f"{said}. Network cards take no time in this cluster model, so none is busy."
    return f"{said}. Network cards are looked at with each evaluation; the table has them all."


def moved(run: Run) -> list[tuple[str, int]]:
    """Bytes by kind."""
    last: Row = (run.rows[-1] if run.rows else {}) | run.summary
    found = [
        (said, int(last[name]))
        for name, said in (("bytes_fetched", "fetched"), ("bytes_pushed", "pushed"))
        if name in last
    ]
    if "coordinator" in last:
        each = last["coordinator"]["bytes_per_iteration"]
        found.append(("coordinator's commands and replies", round(each * last["iterations"])))
    return found


def _timeline(run: Run, blocks: int) -> dict[str, Any]:
    found = timeline(with_deaths(run), blocks)
    said = f"{found['spans']:,} spans, none left out."
    if found["dropped"]:
        said = (
            f"{found['spans']:,} spans; {found['dropped']:,} later ones were not kept "
            "(--config.max_spans keeps more)."
        )
    if found["drawn"] < found["spans"]:
        said += (
            f" Drawn as {found['drawn']:,} blocks: neighbours on a lane with at most "
            f"{found['joined_below_s']:.2g} s between them are one."
        )
    return found | {"said": said, "end_s": run.end_s}


def _deaths_said(run: Run) -> str:
    found = kills(run.events)
    back = sorted(k.back_after_s for k in found if math.isfinite(k.back_after_s))
    said = f"{count(len(found), 'death')}, {count(len(back), 'return')}"
    if back:
        said += f"; half of them back within {back[len(back) // 2]:.3g} s"
    said += ". A computation that a death cut short is drawn, and counted, in whole"
    return said + (f". The first {_DEATHS} are listed." if len(found) > _DEATHS else ".")


def _short(value: Any) -> Any:
    """Floats with the digits that a picture shows; what is not finite is null."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
