"""Mistakes on the command line of every command: one line, before anything begins."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dbjax.data import __main__ as data
from dbjax.files import prepare
from experiments import chaos, demo, replay, run
from experiments.command_line import command
from experiments.figure3 import __main__ as figure3
from experiments.figure4 import __main__ as figure4
from experiments.figure4 import tuning
from experiments.figure5 import __main__ as figure5
from experiments.report import __main__ as report
from experiments.sweep import __main__ as sweep

CONFIG = "--config=configs/quickstart.py:smoke"
SPACE = "--space=tests/experiments/small_space.py"
COMMANDS = {  # command -> what it needs besides --workdir
    "run": (run, [CONFIG]),
    "sweep": (sweep, [CONFIG, SPACE]),
    "chaos": (chaos, [CONFIG, "--runtime=virtual"]),
    "replay": (replay, []),
    "report": (report, ["nosuch"]),
    "demo": (demo, ["--variant=smoke"]),
    "figure3": (figure3, ["--size=smoke"]),
    "figure4": (figure4, ["--size=smoke"]),
    "figure5": (figure5, ["--size=smoke"]),
}
TAKE_A_FILE = ("run", "sweep", "chaos")
TAKE_FIELDS = (*TAKE_A_FILE, "figure4", "figure5")


def said(capsys, name, *arguments):
    """The one line that a command says of a mistake."""
    module, needed = COMMANDS[name]
    with pytest.raises(SystemExit) as ended:
        command(lambda _: module.main([*needed, *arguments]))
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert len(error.splitlines()) == 1, error
    return error.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_that_a_command_does_not_know_is_named(name, capsys):
    """A field of a config is suggested where one is taken, and nothing that is not near."""
    error = said(capsys, name, "--replicas=4")
    hint = error.removeprefix("error: no flag --replicas; ")
    if name in TAKE_FIELDS:
        assert hint == "nearest: --config.options.replicas=4"
    else:
        assert hint.startswith("there are: --")
    assert "nearest" not in said(capsys, name, "--zzzzzz=4")
    assert "is not of the form --name=value" in said(capsys, name, "--zzzzzz")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in TAKE_A_FILE])
def test_a_config_is_no_flag_of_a_command_that_takes_none(name, capsys):
    assert said(capsys, name, CONFIG).startswith("error: no flag --config; there are: --")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in TAKE_FIELDS])
def test_a_field_is_no_flag_of_a_command_that_takes_none(name, capsys):
    assert said(capsys, name, "--config.seed=3").startswith("error: no flag --config.seed; ")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_flag_is_refused(name, capsys):
    flag = "out" if name == "report" else "workdir"
    for empty in ("", "  "):
        assert said(capsys, name, f"--{flag}={empty}").startswith(f"error: --{flag}= is empty: ")


@pytest.mark.parametrize(
    ("name", "flag", "meant"),
    [
        ("run", "--workdr=x", "--workdir=x"),
        ("run", "--n-push=2", "--config.options.n_push=2"),
        ("run", "--gamma=2", None),  # of the rule of another config
        ("run", "--num_examples=9", "--config.data.num_examples=9"),
        ("run", "--latency_s=9", "--config.cluster.latency_s=9"),
        ("run", "--seed=9", "--config.seed=9"),
        ("sweep", "--cluster_seeds=2", "--cluster-seeds=2"),
        ("sweep", "--prunner=2", "--pruner=2"),
        ("chaos", "--backup=2", "--backups=2"),
        ("figure3", "--batch_size=2", "--batch-size=2"),
        ("figure4", "--method=sgd", "--methods=sgd"),
        ("figure5", "--until_s=3", "--config.until_s=3"),
        ("demo", "--methds=sgd", "--methods=sgd"),
        ("report", "--outt=x", "--out=x"),
    ],
)
def test_the_nearest_flag_or_field_is_named(name, flag, meant, capsys):
    hint = said(capsys, name, flag).partition("; ")[2]
    assert hint == f"nearest: {meant}" if meant else hint.startswith("there are")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--config.seed", "--config.seed=VALUE"),
        ("--config.n-fetch", "--config.options.n_fetch=VALUE"),
        ("--config.rule.learning_rate", "--config.rule.learning_rate=VALUE"),
        ("--config.untl_s", "--config.until_s=VALUE"),
        ("--workdir", "--workdir=VALUE"),
        ("--config", "--config=VALUE"),
        ("seed", "--config.seed=VALUE"),
    ],
)
def test_a_flag_without_a_value_is_told_how_it_is_given(flag, meant, capsys):
    error = said(capsys, "run", flag)
    assert error == f"error: {flag!r} is not of the form --name=value; nearest: {meant}"


def test_a_field_without_its_group_is_named(capsys):
    assert "nearest: 'options.replicas'" in said(capsys, "run", "--config.replicas=3")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("replay", "report")])
@pytest.mark.parametrize("below", ["", "/folder"])
def test_an_unusable_workdir_is_found_before_any_run(name, below, tmp_path, capsys, monkeypatch):
    """A file stands where a folder has to be."""
    (tmp_path / "file").write_text("")
    begun = []
    for module in (run, demo, chaos):
        monkeypatch.setattr(module, "run_config", lambda *a, **k: begun.append(a), raising=False)
    for module in (figure4, figure5, tuning):
        monkeypatch.setattr(module, "run_seeds", lambda *a: begun.append(a))
    monkeypatch.setattr(figure3, "points", lambda *a: begun.append(a))
    if name == "run":
        monkeypatch.undo()
    runs = [f"--runs={tmp_path}/runs"] if name.startswith(("figure4", "figure5")) else []
    error = said(capsys, name, f"--workdir={tmp_path}/file{below}", *runs)
    assert error.startswith(f"error: workdir '{tmp_path}/file{below}' cannot be written: ")
    assert not begun
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("out", ["folder", "file/report.html"])
def test_a_page_that_cannot_be_written_is_found_before_runs_are_read(out, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert re.search(
        r"name a file|cannot be written", said(capsys, "report", f"--out={tmp_path / out}")
    )


def test_an_empty_workdir_is_not_the_current_folder():
    for empty in ("", " "):
        with pytest.raises(ValueError, match="is empty: name a folder"):
            prepare(empty)
    assert prepare(".") == Path()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--for=inf"], "--for=inf must be above 0 and finite"),
        (["--for=nan"], "--for=nan must be above 0 and finite"),
        (["--for=0"], "--for=0.0 must be above 0"),
        (["--kill-every=inf"], "--kill-every=inf must be above 0 and finite"),
        (["--kill-every=-1h"], "--kill-every=-3600.0 must be above 0"),
        (["--config.until_s=3"], "--config.until_s=3 has no effect: give --for"),
        (["--config.runtime=virtual"], "has no effect: give --runtime"),
        (["--config.options.shard_backups=1"], "has no effect: give --backups"),
        (["--config.event_log=true"], "has no effect: the log is always written"),
        (["--runtime=ray", "--config.cluster.latency_s=1"], "it needs runtime=virtual"),
    ],
)
def test_what_chaos_cannot_do_or_sets_itself_is_refused(flags, text, tmp_path, capsys):
    assert text in said(capsys, "chaos", f"--workdir={tmp_path / 'run'}", *flags)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("seed=3", "every run has seeds of its own; give --seeds=N"),
        ("data_seed=3", "give --seeds=N"),
        ("event_log=true", "has no effect on what the figure shows"),
        ("runtime=threads", "the clock depends on it"),
        ("options.replicas=3", "the clock depends on it"),
        ("until_s=none", "nothing would end this run"),
        ("options.n_fetch=2", "options has no 'n_fetch'"),  # of SGD
        ("rule.name=adam", "rule 'adam' needs 'learning_rate'"),
    ],
)
def test_what_a_figure_cannot_show_is_refused_before_any_run(change, text, tmp_path, capsys):
    given = [f"--config.{change}", f"--workdir={tmp_path / 'out'}", f"--runs={tmp_path / 'runs'}"]
    assert text in said(capsys, "figure4", *given)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["digits", "--num-frames=9"], "--num-frames is for speech_frames"),
        (["mnist", "--seed=9"], "--seed is for speech_frames"),
        (["speech_frames", "--seed=-1"], "seed=-1 must be a whole number from 0 to"),
        (["speech_frames", "--data-dir="], "is empty: name a folder"),
    ],
)
def test_mistakes_when_data_are_made(arguments, text, capsys):
    assert data.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line


def test_data_are_not_made_where_they_cannot_be_left(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(data, "load", lambda *a, **k: pytest.fail("data are made"))
    assert data.main(["speech_frames", f"--data-dir={tmp_path}/file"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_benchmarks_say_in_a_line_where_they_cannot_be_left(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    from benchmarks import run as benchmarks

    for out in ("", f"{tmp_path}/file"):
        with pytest.raises(SystemExit) as ended:
            benchmarks.main([f"--out={out}"])
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_only_sweeps_need_optuna_and_say_what_to_install():
    script = """
import sys
sys.modules["optuna"] = None
import experiments.figure4.__main__
from experiments.command_line import command
from experiments.sweep import __main__ as sweep
sys.argv = ["sweep"]
command(sweep.main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    said = "error: sweeps need Optuna: pip install 'dbjax[sweep]'\n"
    assert (done.returncode, done.stderr) == (2, said)
