"""A workdir that is used again: nothing is lost by mistake, and a run goes on where it can."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from dbjax.files import LOCK, lock_directory
from experiments import run
from experiments.command_line import command
from tests.processes import LIMIT_S

QUICKSTART = ["--config=configs/quickstart.py:smoke", "--config.options.replicas=4"]
SHORT = ["--config.until_s=1.0", "--config.evaluations=5"]
LONG = ["--config.until_s=2.0", "--config.evaluations=10"]


def ran(workdir, *more):
    assert run.main([*QUICKSTART, *more, f"--workdir={workdir}"]) == 0
    summary = json.loads((workdir / "summary.json").read_text())
    left = {k: v for k, v in summary.items() if k not in ("wall_s", "executor", "config")}
    return left, (workdir / "metrics.jsonl").read_text()


def refused(capsys, workdir, *more):
    with pytest.raises(SystemExit) as ended:
        command(lambda _: run.main([*QUICKSTART, *more, f"--workdir={workdir}"]))
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def files(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*") if path.is_file() and path.name != LOCK
    }  # fmt: skip


@pytest.mark.parametrize("mistake", [
    "--config.options.n_fetch=0", "--config.data.name=nosuch", "--config.until_s=-1.0",
    "--config.until_s=none", "--config.model.name=nosuch", "--config.checkpoint.every_s=-1.0",
    "--config.cluster.failures=({'node': 'shard/9', 'at_s': 1.0, 'back_s': 2.0},)",
])  # fmt: skip
@pytest.mark.parametrize("more", [[], ["--config.event_log=true"], ["--config.checkpoint.keep=0"]])
def test_a_mistake_costs_nothing_of_what_was_there(mistake, more, workdir, capsys):
    before = files(workdir)
    said = refused(capsys, workdir, mistake, *more)
    assert said.startswith("error: ")
    assert "finished run" not in said
    assert files(workdir) == before


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What was killed before its first checkpoint, which any other may take the place of."""
    path = tmp_path_factory.mktemp("runs") / "short"
    ran(path, *SHORT, "--config.checkpoint.keep=0")
    (path / "summary.json").unlink()
    return path


def test_a_run_that_begins_makes_away_with_what_was_there(tmp_path):
    often = [*SHORT, "--config.checkpoint.every_s=0.2", "--config.checkpoint.keep=2"]
    ran(tmp_path, *often)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    ran(tmp_path, *often)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    assert before.keys() == after.keys()
    assert all(after[name] > before[name] for name in before)


def test_a_second_process_is_told_of_the_first(tmp_path, capsys):
    with lock_directory(tmp_path):
        said = refused(capsys, tmp_path, *SHORT)
    assert said == (
        f"error: {tmp_path} is in use by process {os.getpid()}: wait, or use another --workdir"
    )
    assert files(tmp_path) == {}
    with lock_directory(tmp_path):
        pass


def test_a_workdir_is_free_when_its_process_was_killed(tmp_path):
    script = f"""
from dbjax.files import lock_directory
import time
with lock_directory({str(tmp_path)!r}):
    print("there", flush=True)
    time.sleep({LIMIT_S})
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "there\n"
    with (
        pytest.raises(ValueError, match=f"in use by process {first.pid}: wait"),
        lock_directory(tmp_path),
    ):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=LIMIT_S)
    with lock_directory(tmp_path):
        pass


def test_a_run_that_ended_and_is_given_more_time_leaves_what_one_run_does(tmp_path, caplog):
    short, _ = ran(tmp_path / "twice", *SHORT)
    again = ran(tmp_path / "twice", *LONG)
    assert "resumed at 1.0 s" in caplog.text
    assert again == ran(tmp_path / "once", *LONG)
    assert again[0]["updates"] > short["updates"]


def test_one_that_is_killed_as_it_is_taken_up_is_taken_up_again(tmp_path, caplog):
    """Its config is there, but the summary is still that of the shorter run."""
    ran(tmp_path / "once", *LONG)
    ran(tmp_path / "twice", *SHORT)
    config = (tmp_path / "once" / "config.json").read_text()
    (tmp_path / "twice" / "config.json").write_text(config)
    assert ran(tmp_path / "twice", *LONG) == ran(tmp_path / "once", *LONG)
    assert "resumed at 1.0 s" in caplog.text


def test_one_that_ended_and_is_given_more_steps_goes_on(tmp_path, caplog):
    steps = ["--config.until_s=none", "--config.evaluations=1"]
    short, _ = ran(tmp_path, *steps, "--config.options.steps=10")
    again, _ = ran(tmp_path, *steps, "--config.options.steps=20")
    assert "resumed at" in caplog.text
    assert (short["updates"], again["updates"]) == (40, 80)
    assert again["time_s"] > short["time_s"]


def test_the_same_once_more_runs_again(tmp_path, caplog):
    first = ran(tmp_path, *LONG)
    assert ran(tmp_path, *LONG) == first
    assert f"starting over: the run in {tmp_path} had finished" in caplog.text
    assert "resumed" not in caplog.text


@pytest.mark.parametrize(("more", "said"), [
    (SHORT, "evaluations=10, not 5"),
    ([*LONG, "--config.until_s=1.0"], "until_s=2.0, not 1.0"),
    ([*LONG, "--config.until_s=3.0", "--config.batch_size=16"], "batch_size=32, not 16"),
    ([*LONG, "--config.options.shards=2"], "options.shards=3, not 2"),
    ([*LONG, "--config.checkpoint.keep=0"], "checkpoint.keep=3, not 0"),
])  # fmt: skip
def test_one_that_ended_is_not_lost_to_another(tmp_path, finished, capsys, more, said):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path)
    assert refused(capsys, tmp_path, *more) == (
        f"error: workdir {str(tmp_path)!r} holds a finished run with {said}: give another "
        "--workdir, or delete that one"
    )
    assert files(tmp_path) == before


def test_one_without_checkpoints_is_not_lost_to_another_either(tmp_path, capsys):
    ran(tmp_path, *SHORT, "--config.checkpoint.keep=0")
    for more in (SHORT, [*LONG, "--config.checkpoint.keep=0", "--config.options.shards=2"]):
        assert "holds a finished run with" in refused(capsys, tmp_path, *more)


def test_one_that_was_killed_before_its_first_checkpoint_says_that_it_begins_anew(
    tmp_path, finished, caplog
):
    """A config, no summary, and an empty directory of checkpoints."""
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    ran(tmp_path, *SHORT)
    assert f"starting over: the interrupted run in {tmp_path} left no checkpoint" in caplog.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "long"
    ran(path, *LONG)
    return path
