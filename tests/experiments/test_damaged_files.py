"""Damaged and foreign files: one line that names the file and what to do, never a traceback."""

import errno
import io
import json
import random
import shutil

import pytest

from dbjax.files import write_json
from experiments import replay, report, run
from experiments.command_line import command, load_config
from experiments.defaults import defaults
from experiments.report import __main__ as report_command
from experiments.runs import _read
from experiments.sweep.plan import Plan
from experiments.sweep.run import _opened, _resumed, sweep
from experiments.sweep.space import Space, integers
from tests.experiments.runs import ROWS, leave

SPANS = [("replica/0", "compute", 0.0, 1.0), ("shard/0", "push", 1.0, 1.5)]
CARDS = [row | {"cards_busy_s": {"replica sends": 1.0 * i}} for i, row in enumerate(ROWS)]
DEATHS = [{"time_s": 5.0, "node": "replica/0", "event": "died"}]
RUN = ["--config=configs/quickstart.py:smoke", "--config.options.replicas=2",
       "--config.until_s=0.5", "--config.evaluations=2"]  # fmt: skip


@pytest.fixture
def left(tmp_path):
    path = leave(tmp_path / "run", spans=SPANS, histogram={0: 3, 1: 4}, rows=[*CARDS, *DEATHS])
    about = json.loads((path / "config.json").read_text())
    about |= {"commit": "abc", "host": {"platform": "x"}}
    (path / "config.json").write_text(json.dumps(about))
    return path


def said(capsys, main, *arguments):
    """The exit code of a command, and all of its errors."""
    with pytest.raises(SystemExit) as ended:
        command(lambda _: main(list(arguments)))
    return ended.value.code, capsys.readouterr().err.strip()


def require_one_line(capsys, path, main, *arguments):
    code, error = said(capsys, main, *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert "\n" not in error
    assert str(path) in error


FILES = ["config.json", "metrics.jsonl", "summary.json", "trace.json"]
NONSENSE = ["", "{", "[]\n", "3\n", '"x"\n', "null\n", '{"a": 1}\n{"b": [}\n', "\xff\x00"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", NONSENSE, ids=repr)
def test_a_report_names_the_file(name, text, left, capsys):
    (left / name).write_bytes(text.encode("latin1"))
    require_one_line(capsys, left / name, report_command.main, str(left))


@pytest.mark.parametrize(("name", "path", "value"), [
    ("config.json", ("config",), 3), ("config.json", ("config", "options"), []),
    ("config.json", ("config", "rule"), {}), ("config.json", ("versions",), "x"),
    ("config.json", ("host",), 1), ("config.json", ("commit",), 1),
    ("config.json", ("config", "options", "replicas"), "x"),
    ("summary.json", ("warnings",), 5), ("summary.json", ("warnings",), "abc"),
    ("summary.json", ("warnings",), [5]), ("summary.json", ("staleness_histogram",), {"3": -2}),
    ("summary.json", ("staleness_histogram",), {"-3": 2}),
    ("summary.json", ("staleness_histogram",), [1]),
    ("summary.json", ("staleness_histogram",), {"a": 1}),
    ("summary.json", ("staleness_updates",), None), ("summary.json", ("updates",), "many"),
    ("summary.json", ("test_accuracy",), [0.5]),
    ("trace.json", ("traceEvents",), {}), ("trace.json", ("traceEvents", 0), {"ph": "M"}),
    ("trace.json", ("traceEvents", 2, "dur"), None),
])  # fmt: skip
def test_a_report_names_the_file_whose_values_are_of_another_kind(name, path, value, left, capsys):
    whole = json.loads((left / name).read_text())
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (left / name).write_text(json.dumps(whole))
    require_one_line(capsys, left / name, report_command.main, str(left))


@pytest.mark.parametrize("row", [
    [], {"time_s": 1.0}, {"time_s": "x", "node": "evaluator"}, {"time_s": 1.0, "node": 3},
    {"time_s": 40.0, "node": "evaluator", "cards_busy_s": 3},
    {"time_s": 40.0, "node": "evaluator", "updates": "x"},
    {"time_s": 40.0, "node": "evaluator", "updates": None},
    {"time_s": 40.0, "node": "evaluator", "warnings": 7},
], ids=repr)  # fmt: skip
def test_a_report_names_metrics_whose_rows_are_of_another_kind(row, left, capsys):
    with (left / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(row) + "\n")
    require_one_line(capsys, left / "metrics.jsonl", report_command.main, str(left))


def test_a_summary_without_fields_is_none(left, capsys):
    """Where there is no file the run has not ended."""
    (left / "summary.json").write_text("{}")
    require_one_line(capsys, left / "summary.json", report_command.main, str(left))


def test_metrics_without_a_line_are_said_to_be_empty(left, capsys):
    (left / "metrics.jsonl").write_text('{"clock": ')
    code, error = said(capsys, report_command.main, str(left))
    assert code == 2
    assert "metrics.jsonl' is not what a run leaves: it has no complete line" in error


OUT = [*FILES, "events.jsonl", "curves.png", "own.html", "a link"]


@pytest.mark.parametrize("name", OUT)
def test_a_page_takes_the_place_of_no_other_file(name, left, capsys):
    (left / "own.html").write_text("<!doctype html>\n<p>mine</p>\n")
    (left / "a link").symlink_to(left / "summary.json")
    before = {path: path.read_bytes() for path in left.iterdir()}
    code, error = said(capsys, report_command.main, str(left), f"--out={left / name}")
    assert code == 2
    assert error.startswith(f"error: {str(left / name)!r} is ")
    assert error.endswith(": give another --out")
    assert {path: path.read_bytes() for path in left.iterdir()} == before


def test_a_page_takes_the_place_of_an_earlier_one_and_of_an_empty_file(left, tmp_path):
    (tmp_path / "new.html").write_text("")
    for _ in range(2):
        assert report_command.main([str(left), f"--out={tmp_path / 'new.html'}"]) == 0


def test_a_folder_where_no_page_can_be_is_no_workdir(left, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = [str(left), f"--out={tmp_path / 'file' / 'x.html'}"]
    code, error = said(capsys, report_command.main, *given)
    assert code == 2
    assert error.startswith(f"error: the folder of 'x.html', {str(tmp_path / 'file')!r} cannot be")


def test_flipped_bits_are_no_tracebacks(left, tmp_path, capsys):
    draws = random.Random(0)
    for number in range(60):
        path = tmp_path / "damaged"
        shutil.copytree(left, path)
        file = path / FILES[number % len(FILES)]
        content = bytearray(file.read_bytes())
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
        for main, given in ((report_command.main, path), (replay.main, f"--workdir={path}")):
            code, error = said(capsys, main, str(given))
            assert code == 0 or (error.startswith("error: ") and "\n" not in error)
            assert code == 0 or str(path) in error
        shutil.rmtree(path)


def test_a_figure_names_a_run_that_lacks_a_number(left):
    lacking = {name: value for name, value in ROWS[2].items() if name != "test_accuracy"}
    with (left / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(lacking | {"time_s": 40.0}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl' is not what a run leaves: KeyError"):
        _read(left, "run")


def test_a_folder_that_is_given_twice_is_shown_once(left, capsys):
    out = left / "report.html"
    assert report_command.main([str(left), f"{left}/../run"]) == 0
    assert "is given more than once: it is shown once" in capsys.readouterr().out
    twice = out.read_text()
    assert report_command.main([str(left)]) == 0
    assert out.read_text() == twice


@pytest.mark.parametrize("law", ["constant", "exponential", "lognormal"])
def test_a_run_whose_steps_take_no_time_has_a_page(law, tmp_path):
    cluster = defaults().cluster
    cluster.compute_s, cluster.machine.law = 0.0, law
    cluster.machine.sigma = 0.3 if law == "lognormal" else 0.0
    path = leave(tmp_path / "run", histogram={0: 3}, cluster=cluster.to_dict())
    found = report.laws.law(report.read.read(path, "run"))
    assert "computations take no time" in found.message
    assert report_command.main([str(path)]) == 0


@pytest.mark.parametrize(("name", "text"), [
    ("config.json", "{"), ("config.json", '{"config": 3}'), ("config.json", "{}"),
    ("summary.json", "{"), ("summary.json", "[]"), ("summary.json", "{}"),
])  # fmt: skip
def test_a_run_names_the_file_of_the_run_that_lies_there(name, text, left, capsys):
    (left / name).write_text(text)
    (left / "checkpoints").mkdir()
    require_one_line(capsys, left / name, run.main, *RUN, f"--workdir={left}")


@pytest.mark.parametrize("text", ["{", "[]", '{"params_sha256": ', "{}"])
def test_a_replay_names_the_file(text, left, capsys):
    for name in ("config.json", "events.jsonl"):
        whole = (left / name).read_text() if (left / name).exists() else None
        (left / name).write_text(text)
        require_one_line(capsys, left / name, replay.main, f"--workdir={left}")
        (left / name).unlink() if whole is None else (left / name).write_text(whole)


def test_a_replay_names_a_summary_whose_digest_is_none(left, capsys, monkeypatch):
    monkeypatch.setattr(replay, "read_log", lambda workdir: None)
    monkeypatch.setattr("dbjax.replay", lambda *_, **__: None)
    summary = json.loads((left / "summary.json").read_text())
    (left / "summary.json").write_text(json.dumps(summary | {"params_sha256": 5}))
    require_one_line(capsys, left / "summary.json", replay.main, f"--workdir={left}")


QUICK, SEEDS = load_config("configs/quickstart.py:smoke"), Space({"seed": integers(0, 1)})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that is about to begin."""
    path, plan = tmp_path_factory.mktemp("sweep"), Plan(QUICK, SEEDS)
    _resumed(plan, path)
    _opened(plan, path)
    return path


DAMAGE = {
    "nonsense": lambda content: b"nonsense", "empty object": lambda content: b"{}",
    "cut": lambda content: content[: len(content) // 2], "one byte": lambda content: content[:1],
    "flip": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "pages": lambda content: content[:4096] + bytes(len(content) - 4096),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["sweep.json", "study.db"])
def test_a_sweep_names_its_file(name, damage, swept, tmp_path):
    if (name, damage) == ("sweep.json", "pages"):
        pytest.skip("it has no pages")
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"restore it|delete it") as refused:
        sweep(QUICK, SEEDS, tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tuned_values_that_are_damaged_are_named(tmp_path, monkeypatch):
    from configs import _figure4

    monkeypatch.setattr(_figure4, "TUNED", tmp_path / "tuned.json")
    (tmp_path / "tuned.json").write_text('{"laptop": ')
    with pytest.raises(ValueError, match=r"tuned\.json' is not what a tuning leaves"):
        _figure4.winners()


def test_a_full_disk_names_the_picture_and_loses_nothing(tmp_path, capsys, caplog, monkeypatch):
    """Nor does anything else that only tells of a run."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("experiments.plots.FigureCanvasAgg.print_png", full)
    monkeypatch.setattr("tensorboardX.SummaryWriter", full)
    monkeypatch.setattr("dbjax.run_dir.writer.chrome_trace", full)
    monkeypatch.setattr("dbjax.executors.setup.params_sha256", full)
    assert run.main([*RUN, f"--workdir={tmp_path}"]) == 0
    reports = ["params_sha256", str(tmp_path / "tensorboard"), str(tmp_path / "trace.json"),
               str(tmp_path / "curves.png")]  # fmt: skip
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == len(reports)
    for line, name in zip(warned, reports, strict=True):
        assert line.startswith(f"skipped {name}")
        assert "No space left on device" in line
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["params_sha256"] is None
    assert summary["updates"] > 0
    assert (tmp_path / "params").is_dir()
    assert sorted(p.name for p in tmp_path.glob("*.png")) == []


def test_metrics_that_cannot_be_written_meanwhile_are_written_at_the_end(
    tmp_path, caplog, monkeypatch
):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run.main([*RUN, f"--workdir={whole}"]) == 0
    from dbjax.run_dir import writer as files

    class Full(io.StringIO):
        name = "metrics.jsonl"

        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    begin = files.RunWriter._begin
    monkeypatch.setattr(files.RunWriter, "_begin", lambda self: begin(self) and Full())
    assert run.main([*RUN, f"--workdir={torn}"]) == 0
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "metrics.jsonl is incomplete until the run ends: "
        "OSError: [Errno 28] No space left on device"
    ]
    assert (torn / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_parameters_that_cannot_be_written_are_named_and_the_summary_is_there(
    tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer", full)
    require_one_line(capsys, tmp_path / "params", run.main, *RUN, f"--workdir={tmp_path}")
    assert json.loads((tmp_path / "summary.json").read_text())["updates"] > 0


def test_an_error_of_json_names_its_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(OSError, match="Not a directory") as failed:
        write_json(tmp_path / "x.json" / "y.json", {})
    assert failed.value.filename == str(tmp_path / "x.json" / "y.json")
