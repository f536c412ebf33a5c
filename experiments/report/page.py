"""The page: one HTML file with its styles, scripts and numbers inside."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbjax.chaos import kills
from dbjax.trace import Row
from dbjax.workdir.files import plain
from experiments.defaults import defaults
from experiments.report import busy, laws
from experiments.report.read import Run
from experiments.report.timeline import timeline, with_deaths
from experiments.resume import flat

BLOCKS = 100_000  # that the timelines of a page hold together
_DEATHS = 200  # that are listed
_PARTS = ("page.css", "charts.js", "timeline.js", "page.js")


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    here = Path(__file__).parent
    found = (here / "page.html").read_text()
    for name in _PARTS:
        found = found.replace(f"/*{name}*/", (here / name).read_text())
    about = data(runs)
    found = found.replace("/*title*/", html.escape(about["title"]))
    return found.replace("/*data*/", embedded(about))


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
        "runs": [_run(run, BLOCKS // max(1, len(traced))) for run in runs],
        "untraced": f"No spans were left by: {without}. They are written at the end of a run with "
        "max_spans above 0.",
        "configuration": configuration(runs),
        "origin": _origin(runs),
    }


def _run(run: Run, blocks: int) -> dict[str, Any]:
    found = [*busy.nodes(run), *busy.cards(run.rows)]
    return {
        "label": run.label,
        "clock": run.clock,
        "state": run.state,
        "said": sentence(run),
        "numbers": numbers(run),
        "rows": columns(run.rows),
        "staleness": staleness(run),
        "busy": [_busy(one) for one in found],
        "busy_said": _busy_said(run),
        "bytes": moved(run),
        "timeline": _timeline(run, blocks) if len(run.spans) else None,
        "deaths": [[k.node, k.at_s, k.back_after_s] for k in kills(run.events)[:_DEATHS]],
        "deaths_said": _deaths_said(run),
    }


def sentence(run: Run) -> str:
    """What was trained how, in a line."""
    config = run.config
    options = {"replicas": 1, "shards": 1} | config["options"]
    where = {"virtual": "in virtual time", "threads": "in threads", "ray": "in processes on Ray"}
    return (
        f"{config['algorithm']} with {_count(options['replicas'], 'replica')} and "
        f"{_count(options['shards'], 'shard')}, rule {config['rule']['name']}, "
        f"{config['model']['name']} on {config['data']['name']}, "
        f"{where.get(config['runtime'], config['runtime'])}"
    )


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before they read on."""
    found = []
    for run in runs:
        if run.state == "unfinished":
            found.append(
                f"{run.label} has not ended: it goes on, or it was killed. This is what it had left "
                f"by {run.end_s:g} {run.clock} seconds. Staleness and spans are written at the end."
            )
        if run.state == "interrupted":
            found.append(f"{run.label} was interrupted at {run.end_s:g} {run.clock} seconds.")
    if len({run.clock for run in runs}) > 1:
        found.append(
            "Some of these runs have a virtual clock and some a real one. Their seconds are not the "
            "same: compare them by updates or examples."
        )
    return found


def numbers(run: Run) -> list[tuple[str, str]]:
    """The last evaluation and the summary, as a table shows them."""
    last: Row = (run.rows[-1] if run.rows else {}) | run.summary
    seconds = f"{run.clock} seconds"
    found = [(seconds, f"{run.end_s:,.4g}")]
    if run.clock == "virtual" and "wall_s" in last:
        found.append(("wall seconds", f"{last['wall_s']:,.4g}"))
    found += [(name, f"{last[name]:,}") for name in ("updates", "examples") if name in last]
    if run.end_s and "updates" in last:
        found.append((f"updates a {run.clock} second", f"{last['updates'] / run.end_s:,.4g}"))
    for name, said, form in (
        ("test_accuracy", "hold-out accuracy", ".2%"),
        ("train_accuracy", "training set accuracy", ".2%"),
        ("test_loss", "hold-out loss", ".4g"),
        ("train_loss", "training loss", ".4g"),
    ):
        if last.get(name) is not None:
            found.append((said, format(last[name], form)))
    if run.summary.get("staleness_histogram"):
        stale = run.summary["staleness_updates"]
        found.append(("staleness in updates: mean", f"{stale['mean']:.4g}"))
        found.append(("staleness: 95 of 100 below, largest", f"{stale['p95']:,}, {stale['max']:,}"))
    for name in ("deaths", "returns", "lost_pushes", "repeated_pushes", "refused_pushes"):
        if last.get(name):
            found.append((name.replace("_", " "), f"{last[name]:,}"))
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
    return f"{said}. Network cards: means between two evaluations."


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
    said = f"{_count(len(found), 'death')}, {_count(len(back), 'return')}"
    if back:
        said += f"; half of them back within {back[len(back) // 2]:.3g} s"
    return said + (f". The first {_DEATHS} are listed." if len(found) > _DEATHS else ".")


def configuration(runs: Sequence[Run]) -> dict[str, Any]:
    """In which fields the runs differ; of a single one, from the defaults."""
    several = len(runs) > 1
    configs = [flat(run.config) for run in runs]
    if not several:
        configs.insert(0, flat(plain(defaults().to_dict(), infinity="inf")))
    names = sorted(set().union(*configs))
    shown = {name: [_value(config, name) for config in configs] for name in names}
    differ = [[name, *values] for name, values in shown.items() if len(set(values)) > 1]
    said = (
        "Fields in which the runs differ." if several else "Fields that are not at their default."
    )
    if several and not differ:
        said = "The runs have the same configuration."
    return {
        "said": said,
        "differ": {
            "head": ["field", *([r.label for r in runs] if several else ["default", "this run"])],
            "rows": differ,
        },
        "equal": [[name, values[-1]] for name, values in shown.items() if len(set(values)) == 1],
    }


def _value(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "–"


def _origin(runs: Sequence[Run]) -> list[list[str]]:
    names = list(dict.fromkeys(name for run in runs for name in run.about.get("versions", {})))
    rows = [[name, *(run.about["versions"].get(name, "–") for run in runs)] for name in names]
    commits = ["commit", *((run.about.get("commit") or "unknown")[:12] for run in runs)]
    hosts = ["machine", *(run.about.get("host", {}).get("platform", "unknown") for run in runs)]
    return [commits, *rows, hosts]


def _short(value: Any) -> Any:
    """Floats with the digits that a picture shows; what is not finite is null."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
