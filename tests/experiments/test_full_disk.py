"""A disk that is full from some moment of a run on, or once: it goes on or ends with one line.

Whatever it leaves, the same command ends in the same files once there is room again.
"""

import json
import os
import random
import resource
import subprocess
import sys

import pytest

from experiments import run
from experiments.command_line import command
from tests.simulation.disk_faults import failing_write, filling_up

# Where a write is cut short, threads of Orbax still call back to a loop that has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RUN = ["--config=configs/quickstart.py:smoke", "--config.options.replicas=2",
       "--config.until_s=0.5", "--config.evaluations=2", "--config.checkpoint.every_s=0.2",
       "--config.checkpoint.keep=2"]  # fmt: skip


def left(workdir):
    """What does not depend on the wall clock."""
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["wall_s"], summary["executor"]
    return summary, (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    assert run.main([*RUN, f"--workdir={path}"]) == 0
    return left(path)


def ends_on_a_full_disk(workdir, draws, capsys, caplog):
    """Runs the command; returns its exit code."""
    caplog.clear()
    for_good = draws.random() < 0.5
    full = filling_up(draws) if for_good else failing_write(workdir, "error", draws)
    with pytest.raises(SystemExit) as ended, full:
        command(lambda _: run.main([*RUN, f"--workdir={workdir}"]))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == (ended.value.code != 0)
    assert ended.value.code in (0, 2)
    said = [r.getMessage() for r in caplog.records if r.name == "dbjax"]
    assert all("\n" not in line for line in said)
    return ended.value.code


def require_the_same_afterwards(seeds, undisturbed, tmp_path, capsys, caplog):
    codes = []
    for seed in seeds:
        workdir = tmp_path / str(seed)
        codes.append(ends_on_a_full_disk(workdir, random.Random(seed), capsys, caplog))
        assert run.main([*RUN, f"--workdir={workdir}"]) == 0
        assert left(workdir) == undisturbed, seed
    return codes


def test_a_full_disk_changes_no_result(undisturbed, tmp_path, capsys, caplog):
    codes = require_the_same_afterwards(range(7), undisturbed, tmp_path, capsys, caplog)
    assert set(codes) == {0, 2}  # some ended early, some did not


@pytest.mark.slow
def test_100_full_disks_change_no_result(undisturbed, tmp_path, capsys, caplog):
    codes = require_the_same_afterwards(range(100), undisturbed, tmp_path, capsys, caplog)
    with capsys.disabled():
        print(f"\n100 full disks: {codes.count(0)} runs went on, {codes.count(2)} ended early")


def test_no_pages_of_tracebacks_are_printed(tmp_path):
    """Orbax logs some for each checkpoint that fails."""

    def longest_file():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *RUN, f"--workdir={tmp_path}"],
        capture_output=True, text=True, check=False, env=os.environ, preexec_fn=longest_file,
    )  # fmt: skip
    assert "could not be written, the previous one is kept: " in done.stderr
    assert "orbax/checkpoint/_src" not in done.stderr
