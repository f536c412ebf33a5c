"""No command mixes its files with those of another."""

import json
import os
import subprocess
import sys

import pytest

from experiments import chaos, demo, run
from experiments.command_line import command, load_config
from experiments.figure3 import __main__ as figure3
from experiments.figure4 import __main__ as figure4
from experiments.figure5 import __main__ as figure5
from experiments.sweep import __main__ as sweep
from tests.experiments.runs import leave

CONFIG = "--config=configs/quickstart.py:smoke"
COMMANDS = {
    "run": lambda folder: (run, [CONFIG, f"--workdir={folder}"]),
    "sweep": lambda folder: (
        sweep, [CONFIG, "--space=tests/experiments/small_space.py", f"--workdir={folder}"]),
    "chaos": lambda folder: (chaos, [CONFIG, "--runtime=virtual", f"--workdir={folder}"]),
    "demo": lambda folder: (demo, [f"--workdir={folder}"]),
    "figure3": lambda folder: (figure3, ["--size=smoke", f"--workdir={folder}"]),
    "figure4": lambda folder: (figure4, ["--size=smoke", f"--workdir={folder}"]),
    "figure5": lambda folder: (figure5, ["--size=smoke", f"--workdir={folder}"]),
}  # fmt: skip


def a_run(path):
    leave(path)
    (path / "checkpoints").mkdir()


def a_sweep(path):
    path.mkdir()
    (path / "sweep.json").write_text("{}")
    leave(path / "trials" / "0000")


def a_figure(path):
    path.mkdir()
    (path / "figure4.csv").write_text("")


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def refused(folder, name, capsys):
    module, arguments = COMMANDS[name](folder)
    with pytest.raises(SystemExit) as ended:
        command(lambda _: module.main(arguments))
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error.removeprefix(f"error: workdir {str(folder)!r} ")


@pytest.mark.parametrize(("lies", "kind", "names"), [
    (a_run, "a run", set(COMMANDS) - {"run"}), (a_sweep, "a sweep", set(COMMANDS) - {"sweep"}),
    (a_figure, "figure4", set(COMMANDS) - {"figure4", "chaos", "demo"}),
])  # fmt: skip
def test_where_something_else_lies_every_command_is_refused(lies, kind, names, tmp_path, capsys):
    folder = tmp_path / "folder"
    lies(folder)
    before = tree(tmp_path)
    for name in sorted(names):
        assert refused(folder, name, capsys).startswith(f"holds {kind}, whose files would be mixed")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("lies", "kind", "inside"), [
    (a_run, "a run", "checkpoints"), (a_run, "a run", "new/er"),
    (a_sweep, "a sweep", "trials/0000"), (a_sweep, "a sweep", "best"),
])  # fmt: skip
def test_inside_of_a_run_or_a_sweep_every_command_is_refused(
    name, lies, kind, inside, tmp_path, capsys
):
    outer = tmp_path / "outer"
    lies(outer)
    before = tree(tmp_path)
    said = refused(outer / inside, name, capsys)
    if (name, inside) != ("run", "trials/0000") and inside != "trials/0000":
        assert said == f"is inside {kind}, {str(outer)!r}: give a --workdir outside it"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_folder_of_runs_is_none_itself(name, tmp_path, capsys):
    leave(tmp_path / "one")
    assert refused(tmp_path, name, capsys) == (
        f"holds runs in subfolders, such as {str(tmp_path / 'one')!r}: give one of those, or a "
        "new folder"
    )


@pytest.mark.parametrize("name", ["checkpoints", "params", "tensorboard"])
def test_what_is_of_another_program_is_not_deleted(name, tmp_path, capsys):
    """A run makes away with what the run before it left."""
    (tmp_path / name / "100").mkdir(parents=True)
    before = tree(tmp_path)
    assert refused(tmp_path, "run", capsys).startswith(f"holds {name!r} without the config.json")
    assert tree(tmp_path) == before


def test_a_run_begins_where_one_ended_before_its_first_row(tmp_path, monkeypatch):
    """Such a run leaves an empty folder of checkpoints, and no config."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    given = [CONFIG, "--config.options.replicas=2", "--config.until_s=0.2"]
    with monkeypatch.context() as patch:
        patch.setattr("dbjax.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.main([*given, f"--workdir={tmp_path}"])
    assert "checkpoints" in tree(tmp_path)
    assert run.main([*given, f"--workdir={tmp_path}"]) == 0


@pytest.mark.parametrize("runtime", ["thread", "Virtual", ""])
def test_a_runtime_that_is_none_is_refused_before_anything_is_made(runtime, tmp_path):
    config = load_config("configs/quickstart.py:smoke")
    config.runtime = runtime
    said = f"^runtime='{runtime}' is neither 'virtual' nor 'threads' nor 'ray'$"
    with pytest.raises(ValueError, match=said):
        run.run_config(config, tmp_path / "run", "a run")
    assert tree(tmp_path) == []


def test_where_a_config_of_another_program_lies_above_all_is_well(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "something else"}))
    given = [CONFIG, "--config.options.replicas=2", "--config.until_s=0.2"]
    assert run.main([*given, f"--workdir={tmp_path / 'runs' / 'one'}"]) == 0


def test_a_command_hears_ctrl_c_before_it_imports_anything():
    """Whatever takes time to import comes later; Python's own start is not ours."""
    script = """
import os, sys, _signal
_signal.signal(_signal.SIGINT, _signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name != "experiments":
            os.write(2, name.encode())
            os.kill(os.getpid(), _signal.SIGINT)
sys.argv = ["-m"]
sys.meta_path.insert(0, Interrupting())
for name in ("typing", "enum", "signal"):  # Python itself may have imported them
    sys.modules.pop(name, None)
import experiments
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    # What it imports first is the library, and by then it is heard.
    assert (ended.returncode, ended.stderr) == (130, "dbjaxinterrupted\n")
