"""Files of a run, one by one: what is there when, and the timeline by hand."""

import json
import types

import jax.numpy as jnp
import pytest

from dbjax.files import lock_directory, prepare, write_json
from dbjax.run_dir import RunWriter, is_written
from dbjax.run_dir.chrome_trace import chrome_trace, merged
from dbjax.runtime.node_names import node_order
from dbjax.runtime.trace import Span, Trace
from dbjax.train import Result

CONFIG = {"seed": 3, "until_s": float("inf")}
ROWS = [
    {"time_s": 0.0, "node": "evaluator", "updates": 0, "accuracy": 0.5},
    {"time_s": 1.0, "node": "replica/0", "step": 0, "loss": 2.0},
    {"time_s": 1.5, "node": "shard/0", "event": "died"},
    {"time_s": 2.0, "node": "evaluator", "updates": 4, "accuracy": float("nan")},
]


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def result(**summary):
    trace = Trace(max_spans=2, rows=list(ROWS))
    for end_s in (1.0, 2.0, 3.0):
        trace.span("replica/0", "compute", end_s - 1, end_s)
    return Result({"w": jnp.arange(3.0)}, {"updates": 4, **summary}, trace, {0: 3, 2: 1})


def test_metrics_grow_while_the_run_goes_on(tmp_path):
    with RunWriter(tmp_path, CONFIG, clock="virtual") as files:
        assert list(tmp_path.iterdir()) == []  # until there is a row
        files.listen(ROWS[0])
        header, first = lines(tmp_path)
        assert header["clock"] == "virtual"
        assert first == ROWS[0]
        for row in ROWS[1:]:
            files.listen(row)
        # evaluations, deaths and returns, no single losses; what is no number is null
        assert lines(tmp_path)[1:] == [ROWS[0], ROWS[2], ROWS[3] | {"accuracy": None}]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"] == {"seed": 3, "until_s": "inf"}


def test_which_rows_are_left():
    assert [is_written(row) for row in ROWS] == [True, False, True, True]


def test_rows_of_a_run_that_is_taken_up_stay(tmp_path):
    with RunWriter(tmp_path, CONFIG, clock="wall", rows=[ROWS[0]]) as files:
        files.listen(ROWS[3])
    assert [row["time_s"] for row in lines(tmp_path)[1:]] == [0.0, 2.0]


def test_what_a_run_before_left_stays_until_the_first_row(tmp_path):
    for name in ("summary.json", "metrics.jsonl", "events.jsonl"):
        (tmp_path / name).write_text("before")
    begun = []
    with RunWriter(tmp_path, CONFIG, clock="wall", begun=lambda: begun.append(1)) as files:
        files.event_log()
        for name in ("summary.json", "metrics.jsonl", "events.jsonl"):
            assert (tmp_path / name).read_text() == "before"
        assert begun == []
        files.listen(ROWS[1])
        assert not (tmp_path / "summary.json").exists()
        assert (tmp_path / "events.jsonl").read_text().startswith('{"dbjax event log"')
        files.listen(ROWS[2])
    assert begun == [1]
    assert lines(tmp_path)[1:] == [ROWS[2]]


def test_without_a_log_the_one_before_goes(tmp_path):
    (tmp_path / "events.jsonl").write_text("before")
    with RunWriter(tmp_path, CONFIG, clock="virtual") as files:
        files.listen(ROWS[0])
    assert not (tmp_path / "events.jsonl").exists()


def test_the_end_writes_summary_timeline_and_parameters(tmp_path):
    with RunWriter(tmp_path, CONFIG, clock="virtual") as files:
        files.listen(ROWS[0])
        files.finish(result(train_loss=float("inf")))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["train_loss"] is None
    assert summary["staleness_histogram"] == {"0": 3, "2": 1}
    assert summary["config"] == {"seed": 3, "until_s": "inf"}
    assert "jax" in summary["versions"]
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"] == {"clock": "virtual", "dropped_spans": 1}
    assert (tmp_path / "params").is_dir()


def test_a_timeline_by_hand():
    """Calls of a replica to all shards at once are one span, to the last reply."""
    spans = [
        Span("replica/10", "push", 1.0, 1.5),
        Span("replica/2", "push", 1.0, 1.2),
        Span("replica/2", "push", 1.0, 1.7),
        Span("replica/2", "push", 2.0, 2.1),
        Span("shard/0", "push", 1.1, 1.2),
        Span("shard/0", "fetch", 0.5, 0.75),
    ]
    assert merged(spans) == [
        Span("replica/2", "push", 1.0, 1.7),
        Span("replica/2", "push", 2.0, 2.1),
        Span("replica/10", "push", 1.0, 1.5),
        Span("shard/0", "apply", 1.1, 1.2),
        Span("shard/0", "fetch", 0.5, 0.75),
    ]
    made = chrome_trace(spans, clock="wall", dropped=0)
    names = {
        e["pid"]: e["args"]["name"] for e in made["traceEvents"] if e["name"] == "process_name"
    }
    assert list(names.values()) == ["replica/2", "replica/10", "shard/0"]
    drawn = [e for e in made["traceEvents"] if e["ph"] == "X"]
    assert [(names[e["pid"]], e["name"]) for e in drawn] == [
        (span.node, span.kind) for span in merged(spans)
    ]
    assert (drawn[4]["ts"], drawn[4]["dur"]) == (0.5e6, 0.25e6)  # microseconds
    assert len({e["tid"] for e in drawn}) == 4  # a track for each kind of each node
    assert sorted(["shard/1", "replica/10", "replica/9", "coordinator"], key=node_order) == [
        "coordinator", "replica/9", "replica/10", "shard/1"
    ]  # fmt: skip


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir .*file/run' cannot be written"):
        prepare(tmp_path / "file" / "run")
    assert prepare(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_json_is_strict_and_its_keys_are_text(tmp_path):
    write_json(tmp_path / "x.json", {1: (float("nan"), True, None, "a")})
    assert (tmp_path / "x.json").read_text() == (
        '{\n  "1": [\n    null,\n    true,\n    null,\n    "a"\n  ]\n}\n'
    )
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


def test_two_are_not_in_one_directory(tmp_path):
    with (
        lock_directory(tmp_path),
        pytest.raises(ValueError, match=r"is in use by process \d+: wait, or use another"),
        lock_directory(tmp_path),
    ):
        pass
    with lock_directory(tmp_path):  # and then it is free
        pass


def test_events_of_tensorboard_are_the_numbers_of_the_evaluations(tmp_path, monkeypatch):
    import tensorboardX

    said = []

    class Writer:
        def __init__(self, directory, write_to_disk):
            said.append(directory)

        def __enter__(self):
            return types.SimpleNamespace(
                add_scalar=lambda name, value, step, walltime: said.append(
                    (name, value, step, walltime)
                )
            )

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Writer)
    with RunWriter(tmp_path, CONFIG, clock="virtual") as files:
        files.finish(result())
    assert ("accuracy", 0.5, 0, 0.0) in said
    assert ("updates", 4, 4, 2.0) in said
    assert not any(one[0] == "accuracy" and one[2] == 4 for one in said[1:])  # that is no number
