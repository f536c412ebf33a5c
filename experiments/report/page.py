"""Builds the page: a single HTML file that includes its styles, scripts and data."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbjax.files import format_errors_naming, plain
from dbjax.monitoring.fault_injection import kills
from dbjax.run_dir import METRICS, SUMMARY
from dbjax.runtime.trace import Row
from experiments.defaults import defaults, flat
from experiments.report import laws, utilisation
from experiments.report.read import TRACE, Run
from experiments.report.text import count, numbers, sentence, warnings
from experiments.report.timeline import timeline, with_deaths
from experiments.saved import CONFIG

BLOCKS = 100_000  # largest number of blocks in all timelines of a page together
_DEATHS = 200  # largest number of node failures to list per run
_HEAD_BYTES = 100_000  # more than what precedes the <main> element of a page
_PARTS = ("page.css", "charts.js", "timeline.js", "page.js")


def page(runs: Sequence[Run]) -> str:
    """Returns the HTML of the page about some runs."""
    here, about = Path(__file__).parent, data(runs)
    parts = {name: (here / name).read_text() for name in _PARTS}
    parts |= {"title": html.escape(about["title"]), "data": embedded(about)}
    template = (here / "page.html").read_text()
    return re.sub(r"/\*([\w.]+)\*/", lambda found: parts[found[1]], template)


def is_page(path: Path) -> bool:
    """Whether a file was written by this command, or is empty."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or (head.startswith(b"<!doctype html>") and b'<main id="page"></main>' in head)


def embedded(value: Any) -> str:
    """Encodes a value as JSON that can be embedded in HTML, since it has no `<`."""
    text = json.dumps(_short(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def data(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns everything that the page's scripts draw, as values for JSON."""
    traced = [run for run in runs if len(run.spans)]
    without = ", ".join(run.label for run in runs if run not in traced)
    return {
        "title": " and ".join(run.label for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        "warnings": warnings(runs),
        "runs": [_read(run, BLOCKS // max(1, len(traced))) for run in runs],
        "untraced": f"There are no spans from: {without}. A run writes its spans when it ends, if "
        "max_spans is above 0.",
        "configuration": configuration(runs),
        "origin": origin(runs),
    }


def _read(run: Run, blocks: int) -> dict[str, Any]:
    """Returns what the page shows of a run.

    Raises:
      ValueError: a file of the run has unusable contents; the message names the file.
    """
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
        cards = utilisation.cards(run.rows)
        deaths = [[k.node, k.at_s, k.back_after_s] for k in kills(run.events)[:_DEATHS]]
        found |= {"rows": rows, "deaths": deaths, "deaths_said": _deaths_said(run)}
    with summary:
        found |= {"numbers": numbers(run), "staleness": staleness(run), "bytes": moved(run)}
    with trace:
        drawn = _timeline(run, blocks) if len(run.spans) else None
        shares = [_busy(one) for one in (*utilisation.nodes(run), *cards)]
        found |= {"timeline": drawn, "busy": shares, "busy_said": _busy_said(run)}
    return found


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Returns name -> values over time, for every number of the evaluations."""
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, int | float)
    )
    return {name: [row.get(name) for row in rows] for name in names}


def staleness(run: Run) -> dict[str, Any]:
    """Returns the histogram of staleness, and the predicted distribution."""
    histogram = {int(k): n for k, n in run.summary.get("staleness_histogram", {}).items()}
    law = laws.law(run)
    bars = laws.bars(histogram, law.shares)
    total = sum(histogram.values())
    note = f"{total:,} pushes."
    if bars and bars[-1].last > bars[-1].first + (bars[0].last - bars[0].first):
        last = bars[-1]
        rare = f"{last.first:,} to {last.last:,} updates ({last.count:,} pushes)"
        note += f" The last bar combines a staleness of {rare}."
    if not total:
        note = "No pushes were counted." if run.summary else "The run has not ended: no histogram."
        if run.summary and "staleness_histogram" not in run.summary:
            note = "This run has no histogram: an earlier version of dbjax wrote it."
    return {
        "bars": [dataclasses.asdict(bar) for bar in bars],
        "mean": sum(k * n for k, n in histogram.items()) / total if total else None,
        "said": law.message,
        "note": note,
        "predicted": law.shares is not None,
    }


def _busy(one: utilisation.Busy) -> dict[str, Any]:
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
        return "Unknown: utilisation is computed from spans, and this run has none."
    begin_s, end_s = utilisation.extent(run)
    message = f"Computed from spans between {begin_s:.4g} and {end_s:.4g} s"
    message += f", in {utilisation.BINS} equal intervals" if len(run.spans) else ""
    if run.spans.dropped:
        message += f"; {run.spans.dropped:,} later spans were dropped"
    if run.clock == "wall":
        return f"{message}. Real network cards are not measured."
    if not any("cards_busy_s" in row for row in run.rows):
        return (
            f"{message}. Network cards take no time in this cluster model, so they are never busy."
        )
    return f"{message}. Network cards are sampled at each evaluation; the table lists all kinds."


def moved(run: Run) -> list[tuple[str, int]]:
    """Returns the bytes moved over the whole run, as (kind, bytes)."""
    last: Row = (run.rows[-1] if run.rows else {}) | run.summary
    found = [
        (message, int(last[name]))
        for name, message in (("bytes_fetched", "fetched"), ("bytes_pushed", "pushed"))
        if name in last
    ]
    if "coordinator" in last:
        each = last["coordinator"]["bytes_per_iteration"]
        found.append(("coordinator's commands and replies", round(each * last["iterations"])))
    return found


def configuration(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the fields in which the runs differ; a single run is compared with the defaults."""
    several = len(runs) > 1
    configs = [flat(run.config) for run in runs]
    if not several:
        configs.insert(0, flat(plain(defaults().to_dict(), infinity="inf")))
    names = sorted(set().union(*configs))
    shown = {name: [_value(config, name) for config in configs] for name in names}
    differ = [[name, *values] for name, values in shown.items() if len(set(values)) > 1]
    message = (
        "Fields in which the runs differ." if several else "Fields that differ from their defaults."
    )
    if several and not differ:
        message = "The runs have the same configuration."
    return {
        "said": message,
        "differ": {
            "head": ["field", *([r.label for r in runs] if several else ["default", "this run"])],
            "rows": differ,
        },
        "equal": [[name, values[-1]] for name, values in shown.items() if len(set(values)) == 1],
    }


def _value(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "-"


def origin(runs: Sequence[Run]) -> list[list[str]]:
    """Returns a table of the commit, the package versions and the machine of each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.about.get("versions", {})))
    rows = [[name, *(run.about["versions"].get(name, "-") for run in runs)] for name in names]
    commits = ["commit", *((run.about.get("commit") or "unknown")[:12] for run in runs)]
    hosts = ["machine", *(run.about.get("host", {}).get("platform", "unknown") for run in runs)]
    return [commits, *rows, hosts]


def _timeline(run: Run, blocks: int) -> dict[str, Any]:
    found = timeline(with_deaths(run), blocks)
    message = f"{found['spans']:,} spans, none left out."
    if found["dropped"]:
        message = (
            f"{found['spans']:,} spans; {found['dropped']:,} later ones were dropped "
            "(raise --config.max_spans to keep more)."
        )
    if found["drawn"] < found["spans"]:
        message += (
            f" Drawn as {found['drawn']:,} blocks: spans of a lane that are at most "
            f"{found['joined_below_s']:.2g} s apart are merged."
        )
    return found | {"said": message, "end_s": run.end_s}


def _deaths_said(run: Run) -> str:
    found = kills(run.events)
    back = sorted(k.back_after_s for k in found if math.isfinite(k.back_after_s))
    message = f"{count(len(found), 'failure')}, {count(len(back), 'return')}"
    if back:
        message += f"; half of the returns took at most {back[len(back) // 2]:.3g} s"
    message += ". A computation that a failure ended early is drawn, and counted, at full length"
    return message + (
        f". The first {_DEATHS} failures are listed." if len(found) > _DEATHS else "."
    )


def _short(value: Any) -> Any:
    """Rounds floats to the digits that a chart can show; infinities and NaN become null."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
