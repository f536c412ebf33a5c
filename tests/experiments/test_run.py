"""What a run leaves: every file, the same bytes again, and something after Ctrl-C."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dbjax.checkpoint.params import load_params
from dbjax.files import LOCK, plain, write_bytes, write_text
from experiments import demo, run
from experiments.accuracy import time_to
from experiments.command_line import available, load_config
from tests.processes import FAST, LIMIT_S

QUICKSTART = "configs/quickstart.py:smoke"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "quickstart"
    assert run.main([f"--config={QUICKSTART}", f"--workdir={path}"]) == 0
    return path


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_file_is_there(workdir):
    left = {path.name for path in workdir.iterdir()}
    assert left == {"config.json", "metrics.jsonl", "summary.json", "trace.json", "curves.png",
                    "tensorboard", "checkpoints", "params", LOCK}  # fmt: skip


def test_summary_has_what_readers_look_for(workdir):
    summary = strict((workdir / "summary.json").read_text())
    for name in ("clock", "time_s", "updates", "examples", "train_loss", "test_accuracy",
                 "bytes_fetched", "bytes_pushed", "refused_pushes", "params_sha256", "wall_s",
                 "config", "versions"):  # fmt: skip
        assert name in summary
    assert summary["clock"] == "virtual"
    assert set(summary["staleness_updates"]) >= {"mean", "p50", "p95", "max"}
    assert summary["examples"] == 32 * summary["updates"]
    assert summary["test_accuracy"] > 0.9
    assert summary["config"]["options"]["replicas"] == 8


def test_metrics_say_their_clock_and_grow_in_time(workdir):
    header, *rows = map(strict, (workdir / "metrics.jsonl").read_text().splitlines())
    assert header["clock"] == "virtual"
    times = [row["time_s"] for row in rows]
    assert times == sorted(times)
    assert len(rows) == load_config(QUICKSTART).evaluations + 1
    assert rows[-1]["test_accuracy"] > rows[0]["test_accuracy"]


def test_config_says_where_it_comes_from(workdir):
    left = strict((workdir / "config.json").read_text())
    assert left["config"]["cluster"]["machine"]["bandwidth_bytes_per_s"] == "inf"
    assert set(left["versions"]) >= {"python", "jax", "flax", "optax", "numpy", "dbjax"}
    assert {"commit", "host"} <= set(left)


def test_timeline_is_a_chrome_trace(workdir):
    trace = strict((workdir / "trace.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    names = {event["pid"]: event["args"]["name"]
             for event in trace["traceEvents"] if event["name"] == "process_name"}  # fmt: skip
    assert {names[span["pid"]] for span in spans} == {
        *(f"replica/{i}" for i in range(8)), *(f"shard/{i}" for i in range(3))
    }  # fmt: skip
    assert {span["name"] for span in spans} == {"compute", "fetch", "push", "apply"}
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
    assert max(span["ts"] for span in spans) <= 3.0e6  # microseconds
    tracks = {}
    for span in sorted(spans, key=lambda s: s["ts"]):  # spans of a track must not overlap
        if span["name"] in ("compute", "apply"):
            end = tracks.get((span["pid"], span["tid"]), 0.0)
            assert span["ts"] >= end - 1e-6
            tracks[span["pid"], span["tid"]] = span["ts"] + span["dur"]


def test_tensorboard_has_the_metrics(workdir):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (workdir / "tensorboard").iterdir()
    data, tags, at = path.read_bytes(), set(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        tags |= {value.tag for value in event.summary.value}
        at += length + 16
    assert {"train_loss", "test_accuracy", "updates"} <= tags


def test_final_parameters_can_be_read_back(workdir):
    from dbjax.monitoring.metrics import params_sha256
    from experiments import build

    like = build.task(load_config(QUICKSTART)).params
    params = load_params(workdir / "params", like)
    assert jax.tree.structure(params) == jax.tree.structure(like)
    summary = json.loads((workdir / "summary.json").read_text())
    assert params_sha256(params) == summary["params_sha256"]
    assert params_sha256(like) != summary["params_sha256"]


def test_two_processes_leave_the_same_bytes(workdir, tmp_path):
    command = [sys.executable, "-m", "experiments.run", f"--config={QUICKSTART}"]
    subprocess.run([*command, f"--workdir={tmp_path}"], check=True, capture_output=True,
                   env=os.environ | {"PYTHONHASHSEED": "7"})  # fmt: skip
    for name in ("metrics.jsonl", "trace.json"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    digests = [json.loads((path / "summary.json").read_text())["params_sha256"]
               for path in (workdir, tmp_path)]  # fmt: skip
    assert digests[0] == digests[1]


def run_alone(arguments):
    """The command in a process of its own, compiling as little as it can."""
    command = [sys.executable, "-m", "experiments.run", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": FAST}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_a_config_with_cut_replicas_ends_where_it_does_without(runtime, tmp_path):
    """In threads with one replica: two push in any order."""
    replicas = 2 if runtime == "virtual" else 1
    found = []
    for devices in (1, 4):
        workdir = tmp_path / str(devices)
        run_alone(
            ["--config=configs/speech_partitioned.py:smoke", f"--workdir={workdir}",
             "--config.data.name=synthetic", "--config.cluster.compute_s=0.1",
             "--config.until_s=none", "--config.options.steps=10", f"--config.runtime={runtime}",
             f"--config.options.replicas={replicas}", f"--config.sharding.devices={devices}"]
        )  # fmt: skip
        found.append(json.loads((workdir / "summary.json").read_text()))
    whole, sharding = found
    assert sharding["updates"] == whole["updates"] == 10 * replicas
    assert sharding["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    assert sharding["replica_devices"]["count"] == 4
    assert sharding["replica_devices"]["shards_each"] == 1
    assert "replica_devices" not in whole


def test_devices_cannot_be_made_once_jax_has_started(tmp_path):
    config = load_config("configs/vision_downpour.py:smoke")
    jax.devices()
    with pytest.raises(ValueError, match=r"sharding\.host_devices=8: JAX has started with 1"):
        run.run_config(config, tmp_path, "late")


@pytest.mark.parametrize("file", available())
def test_every_config_has_a_smoke_variant_that_runs(file, tmp_path):
    arguments = [f"--config={file}:smoke", f"--workdir={tmp_path}"]
    if load_config(f"{file}:smoke").sharding.host_devices is None:
        assert run.main(arguments) == 0
    else:  # JAX has started here, with one device
        run_alone(arguments)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["updates"] > 0
    assert math.isfinite(summary["train_loss"])
    assert summary["warnings"] == []  # it learns, too


def test_threads_leave_the_same_files(tmp_path, workdir):
    given = ["--config.runtime=threads", "--config.until_s=none", "--config.options.steps=20"]
    assert run.main([f"--config={QUICKSTART}", f"--workdir={tmp_path}", *given]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "events.jsonl", *(p.name for p in workdir.iterdir())
    }  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["clock"], summary["updates"]) == ("wall", 8 * 20)


@pytest.mark.parametrize(
    ("runtime", "number", "code"),
    [("virtual", signal.SIGINT, 130), ("threads", signal.SIGINT, 130),
     ("virtual", signal.SIGTERM, 143)],
)  # fmt: skip
def test_what_is_asked_to_end_ends_with_what_there_is(runtime, number, code, tmp_path):
    command = [sys.executable, "-m", "experiments.run", f"--config={QUICKSTART}",
               f"--workdir={tmp_path}", f"--config.runtime={runtime}",
               "--config.until_s=1e6", "--config.evaluations=1000000"]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    running.send_signal(number)
    printed, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode == code
    assert "Traceback" not in said
    assert printed.rstrip().endswith(" s: repeat the command to resume")
    summary = strict((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] == number.name
    assert 0 < summary["time_s"] < 1e6
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_demo_compares_the_methods(tmp_path, capsys):
    assert demo.main([f"--workdir={tmp_path}", "--variant=smoke"]) == 0
    said = capsys.readouterr().out
    for words in ("SGD [1]", "Adagrad", "hold-out accuracy", "staleness", "speed-up", "updates",
                  "accuracy.png", "timeline.png"):  # fmt: skip
        assert words in said
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert (tmp_path / "timeline.png").stat().st_size > 10_000


def test_time_to_an_accuracy_lies_between_evaluations():
    rows = [{"time_s": t, "test_accuracy": a} for t, a in ((0, 0.1), (1, 0.3), (2, 0.2), (3, 0.5))]
    assert time_to(rows, 0.2) == pytest.approx(0.5)
    assert time_to(rows, 0.1) == 0.0
    assert time_to(rows, 0.4) == pytest.approx(2 + 2 / 3)
    assert time_to(rows, 0.6) == math.inf


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(TypeError):
        write_bytes(path, object())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_numbers_that_are_not_finite():
    value = {"a": (math.inf, -math.inf, math.nan, np.float32(0.5), True, None, 3)}
    assert plain(value) == {"a": [None, None, None, 0.5, True, None, 3]}
    assert plain(value, infinity="inf")["a"][:3] == ["inf", "-inf", None]


def test_every_config_names_its_command():
    for file in available():
        text = Path(file).read_text()
        assert f"--config={file}" in text


def test_a_run_leaves_its_staleness_and_bytes(workdir):
    summary = strict((workdir / "summary.json").read_text())
    histogram = {int(k): times for k, times in summary["staleness_histogram"].items()}
    assert sum(histogram.values()) == 3 * summary["updates"]  # three shards
    assert max(histogram) == summary["staleness_updates"]["max"]
    rows = [strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()[1:]]
    pushed = [row["bytes_pushed"] for row in rows]
    assert pushed == sorted(pushed)
    assert pushed[-1] == summary["bytes_pushed"] > pushed[0] == 0


def test_a_run_leaves_deaths_and_busy_cards(tmp_path):
    given = ['--config.cluster.failures=({"node":"replica/1","at_s":1.0,"back_s":2.0},)',
             "--config.cluster.machine.bandwidth_bytes_per_s=1e6"]  # fmt: skip
    assert run.main([f"--config={QUICKSTART}", f"--workdir={tmp_path}", *given]) == 0
    rows = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[1:]]
    events = [(row["time_s"], row["node"], row["event"]) for row in rows if "event" in row]
    assert events == [(1.0, "replica/1", "died"), (2.0, "replica/1", "returned")]
    assert 0 < rows[-1]["cards_busy_s"]["busiest"] < 3.0
