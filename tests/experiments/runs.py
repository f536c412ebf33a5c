"""Runs on disk, made by hand."""

import json

import ml_collections

from dbjax.files import plain
from experiments.defaults import defaults

ROWS = [
    {"time_s": 10.0 * i, "node": "evaluator", "updates": 40 * i, "examples": 1280 * i,
     "version_skew_updates": i % 2, "bytes_fetched": 100 * i, "bytes_pushed": 50 * i,
     "train_loss": 1.0 / (i + 1), "test_accuracy": 0.1 + 0.2 * i, "train_accuracy": 0.1 + 0.25 * i}
    for i in range(3)
]  # fmt: skip


def trace(spans, dropped=0):
    """A Chrome trace of (node, kind, start_s, end_s)."""
    nodes = list(dict.fromkeys(span[0] for span in spans))
    names = [{"ph": "M", "name": "process_name", "pid": i, "args": {"name": node}}
             for i, node in enumerate(nodes)]  # fmt: skip
    events = [{"ph": "X", "name": kind, "pid": nodes.index(node), "tid": 0, "ts": start * 1e6,
               "dur": (end - start) * 1e6} for node, kind, start, end in spans]  # fmt: skip
    return {"traceEvents": names + events, "otherData": {"dropped_spans": dropped}}


SGD = {"name": "sgd", "learning_rate": 0.1}


def leave(path, *, spans=(), histogram=None, rows=ROWS, ended=True, dropped=0, rule=SGD, **changes):
    """Leaves a run, configured by `changes` of the defaults."""
    config = defaults()
    with config.unlocked(), config.ignore_type():
        config.rule = ml_collections.ConfigDict(rule)
        config.options.update(replicas=2, shards=1)
        config.update(changes)
    path.mkdir(parents=True)
    about = {"config": plain(config.to_dict(), infinity="inf"), "versions": {"jax": "1"}}
    (path / "config.json").write_text(json.dumps(about))
    lines = [{"clock": "virtual" if config.runtime == "virtual" else "wall"}, *rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended:
        summary = rows[-1] | {"interrupted": False, "wall_s": 1.0}
        if histogram is not None:
            summary["staleness_histogram"] = {str(k): n for k, n in histogram.items()}
            summary["staleness_updates"] = {"mean": 1.0, "p50": 1, "p95": 1, "max": 1}
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "trace.json").write_text(json.dumps(trace(spans, dropped)))
    return path
