"""What goes wrong on disk: each one clear line, and nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from dbjax.files import LOCK
from experiments import run
from experiments.command_line import command
from experiments.saved import saved

QUICKSTART = "configs/quickstart.py:smoke"


def said(capsys, *arguments):
    """The exit code of a run and the last line of its errors."""
    with pytest.raises(SystemExit) as ended:
        command(lambda _: run.main(list(arguments)))
    return ended.value.code, capsys.readouterr().err.strip().splitlines()


def test_a_damaged_data_set_is_named(tmp_path, capsys):
    given = ["--config=configs/speech_sgd.py:smoke", f"--workdir={tmp_path / 'run'}",
             f"--config.data_dir={tmp_path}", "--config.data.num_frames=3000"]  # fmt: skip
    assert said(capsys, *given)[0] == 0  # it is made
    (records,) = tmp_path.rglob("*train.array_record*")
    os.truncate(records, records.stat().st_size // 2)
    from dbjax.data import registry

    registry._loaded.cache_clear()
    code, lines = said(capsys, *given)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: data 'speech_frames'")
    assert "delete that folder" in lines[0]
    shutil.rmtree(tmp_path / "speech_frames")
    registry._loaded.cache_clear()


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    given = [f"--config={QUICKSTART}", f"--workdir={tmp_path}"]
    assert said(capsys, *given)[0] == 0
    before = (tmp_path / "summary.json").read_text()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, lines = said(capsys, *given)
    assert code == 2
    assert lines[-1] == f"error: No space left on device: {tmp_path / 'config.json'}"
    assert (tmp_path / "summary.json").read_text() == before
    assert [p.name for p in tmp_path.glob(".*")] == [LOCK]  # no half-written file


def test_without_room_a_run_goes_on_without_checkpoints(tmp_path, capsys, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    given = [f"--config={QUICKSTART}", f"--workdir={tmp_path}", "--config.checkpoint.every_s=0.5"]
    assert said(capsys, *given)[0] == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1  # not one for each
    assert warnings[0].startswith("no room for a checkpoint")
    assert (tmp_path / "summary.json").exists()


def test_a_config_of_another_version_is_named(tmp_path, capsys):
    assert said(capsys, f"--config={QUICKSTART}", f"--workdir={tmp_path}")[0] == 0
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    assert saved(tmp_path).algorithm == "downpour"
    for change, text in (
        (lambda fields: fields.update(batchsize=3), "no field 'batchsize'; nearest: 'batch_size'"),
        (lambda fields: fields.pop("seed"), "lacks the field 'seed'"),
    ):
        fields = dict(whole["config"])
        change(fields)
        path.write_text(json.dumps({"config": fields}))
        with pytest.raises(ValueError, match=f"another version of dbjax: .*{text}"):
            saved(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not what a run leaves"):
        saved(tmp_path)


def test_a_mistake_found_late_is_one_line_too(tmp_path):
    """In a process of its own: what threads say when it ends counts as well."""
    command = [sys.executable, "-m", "experiments.run", f"--config={QUICKSTART}",
               f"--workdir={tmp_path}", "--config.runtime=thread"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: runtime='thread' is neither 'virtual' nor 'threads' nor 'ray'\n"
