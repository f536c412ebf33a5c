"""Checkpoints on disk, and what the shards know of them in runs of other shapes."""

import contextlib
import dataclasses
import errno
import gc
import logging
import os
import shutil
import threading
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Checkpoints, CheckpointState
from tests.checkpoint.stopped import ShardsOnly
from tests.parameter_server.test_failover_client import CLUSTER
from tests.test_conformance import TASK, loss

# Orbax reads all arrays of a damaged checkpoint at once: it raises the first error, and Python says
# of the others that nobody looked at them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def content(number, **changes):
    arrays = ({"w": jnp.full(3, float(number))}, np.arange(number))
    made = CheckpointState({"algorithm": "a"}, 2, (), arrays, 0, float(number), ({"node": "a"},))
    return dataclasses.replace(made, **changes)


@pytest.fixture
def filled(tmp_path):
    """A directory with four, of which the latest two are kept."""
    with Checkpoints(tmp_path / "kept", keep=2) as checkpoints:
        for number in range(1, 5):
            checkpoints.save(content(number))
            checkpoints.wait()
    return tmp_path / "kept"


def latest(path):
    with Checkpoints(path, keep=2) as checkpoints:
        found = checkpoints.latest()
    gc.collect()  # so that they are said in this test
    return found


def steps(path):
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())


def test_the_latest_is_read_and_older_ones_are_deleted(filled):
    assert steps(filled) == [3, 4]
    found = latest(filled)
    assert found.time_s == 4.0
    assert found.rows == ({"node": "a"},)
    np.testing.assert_array_equal(found.shards[0]["w"], np.full(3, 4.0))
    np.testing.assert_array_equal(found.shards[1], np.arange(4))


def damaged(path, way):
    """The latest checkpoint, broken in some way."""
    files = sorted(p for p in (path / "4").rglob("*") if p.is_file())
    data = max((p for p in files if "/d/" in str(p)), key=lambda p: p.stat().st_size)
    if way == "half":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif way == "gone":
        data.unlink()
    elif way == "about":
        (about,) = (path / "4" / "about").glob("metadata")
        about.write_text(about.read_text()[:-20])
    else:
        for file in files:
            file.write_bytes(b"")


@pytest.mark.parametrize("way", ["half", "gone", "about", "empty"])
def test_a_damaged_one_is_left_out_with_a_warning(filled, way, caplog):
    damaged(filled, way)
    with caplog.at_level(logging.WARNING, "dbjax"):
        assert latest(filled).time_s == 3.0
    assert "damaged and skipped" in caplog.text


def test_other_values_in_the_same_files_are_found_out(filled, caplog):
    for file in (filled / "4" / "arrays").rglob("*"):
        if file.is_file():
            file.unlink()
    shutil.copytree(filled / "3" / "arrays", filled / "4" / "arrays", dirs_exist_ok=True)
    assert latest(filled).time_s == 3.0
    assert "damaged and skipped" in caplog.text


def test_a_half_written_one_is_none(filled):
    (filled / "4").rename(filled / "5.orbax-checkpoint-tmp")
    assert latest(filled).time_s == 3.0


@pytest.mark.parametrize("name", ["mkdir", "fsync", "rename"])
def test_a_write_that_fails_costs_no_other_checkpoint_and_leaves_nothing(name, tmp_path, caplog):
    full = mock.patch.object(os, name, side_effect=OSError(errno.ENOSPC, "No space left"))
    before = threading.enumerate()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for number, newest in ((1, 1), (2, 1), (3, 3)):
            with full if number == 2 else contextlib.nullcontext():
                checkpoints.save(content(number))
                checkpoints.wait()
            assert checkpoints.latest().time_s == newest
    assert [record.getMessage() for record in caplog.records if record.name == "dbjax"] == [
        f"a checkpoint in {tmp_path} could not be written, the previous one is kept: "
        "[Errno 28] No space left"
    ]
    assert len(list(tmp_path.iterdir())) == 1
    assert threading.enumerate() == before  # threads that wait would hold up the end of the process


def test_the_number_of_a_failed_write_is_not_used_again(tmp_path):
    """Threads of that write may still write under it, and would damage the other checkpoint."""
    with (
        mock.patch.object(os, "rename", side_effect=OSError(errno.ENOSPC, "No space left")),
        Checkpoints(tmp_path / "kept") as checkpoints,
    ):
        checkpoints.save(content(1))
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with Checkpoints(tmp_path / "link") as checkpoints:
        checkpoints.save(content(2))
    assert steps(tmp_path / "kept") == [2]


def test_all_files_are_on_disk_before_a_checkpoint_has_its_name(tmp_path):
    def fsync(descriptor):
        right(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def rename(source, target):
        if Path(target).parent == tmp_path:
            files = [path for path in Path(source).rglob("*") if path.is_file()]
            left.extend(path.name for path in files if path.stat().st_ino not in flushed)
        renamed(source, target)

    flushed, left, right, renamed = set(), [], os.fsync, os.rename
    with (
        mock.patch("os.fsync", fsync), mock.patch("os.rename", rename),
        Checkpoints(tmp_path) as checkpoints,
    ):  # fmt: skip
        checkpoints.save(content(1))
    assert steps(tmp_path) == [1]
    # Orbax writes these last; they are not needed to read a checkpoint.
    assert set(left) <= {"_CHECKPOINT_METADATA", "commit_success.txt"}


def test_with_none_that_is_whole_there_is_none(filled, caplog):
    for step in (3, 4):
        for file in (filled / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    assert latest(filled) is None
    assert caplog.text.count("damaged and skipped") == 2


def test_one_of_another_version_is_refused(filled, monkeypatch):
    monkeypatch.setattr("dbjax.checkpoint.files._FORMAT", 99)
    with pytest.raises(ValueError, match="its format is 3, here it is 99"):
        latest(filled)


ERRORS = (
    PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left"),
    MemoryError("too much"), AttributeError("a bug"),
    ValueError("PERMISSION_DENIED: Error opening a file"),
)  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_one_that_is_not_damaged_is_not_left_out(filled, error):
    said = rf"cannot read checkpoint .*/4: {type(error).__name__}: "
    with (
        Checkpoints(filled) as checkpoints,
        mock.patch.object(checkpoints._manager, "restore", side_effect=error),
        pytest.raises(ValueError, match=said),
    ):
        checkpoints.latest()


def test_one_of_a_class_that_is_not_known_here_is_not_left_out(filled, monkeypatch):
    monkeypatch.delattr("dbjax.checkpoint.state.CheckpointState")
    with pytest.raises(
        ValueError, match=r"/4: Unknown: 'dbjax.checkpoint.state:CheckpointState' is not"
    ):
        latest(filled)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=0 must be at least 1"):
        Checkpoints(tmp_path, keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match="every seconds=0"):
        dbjax.Every(0)


def test_an_exact_state_is_read_as_it_was_written(tmp_path, monkeypatch):
    from tests.checkpoint.stopped import run, told

    config = downpour.Config(optax.adagrad(0.1), replicas=3, shards=2, steps=20)
    plain, events = run(config, monkeypatch, cluster=CLUSTER)
    with Checkpoints(tmp_path) as checkpoints:
        run(config, monkeypatch, stop=events // 2, cluster=CLUSTER, checkpoints=checkpoints)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest()
        again, left = run(
            config, monkeypatch, cluster=CLUSTER, checkpoints=checkpoints, resume=found
        )
    assert left == events - events // 2
    assert told(again)[0] == told(plain)[0]


RULES = {"sgd": optax.sgd(0.03), "adagrad": optax.adagrad(0.1), "adam": optax.adam(0.02),
         "momentum": optax.sgd(0.01, momentum=0.9)}  # fmt: skip
METHODS = {
    **{f"downpour {n}": downpour.Config(r, replicas=3, shards=2, steps=30)
       for n, r in RULES.items()},
    "backed": downpour.Config(RULES["sgd"], replicas=3, shards=2, steps=30, shard_backups=1),
    "sgd": sgd.Config(RULES["adam"], replicas=3, shards=2, steps=30),
    "sandblaster": sandblaster.Config(replicas=3, shards=2, steps=6),
}  # fmt: skip


def stopped(config, until_s=1.6, **kwargs):
    kept = ShardsOnly()
    given = {"cluster": CLUSTER} | kwargs
    result = dbjax.run(TASK, config, until_s=until_s, checkpoints=kept, **given)
    return kept.all[-1], result.summary["full_loss"]


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize(("shards", "replicas"), [(2, 3), (1, 3), (5, 3), (2, 2), (3, 5)])
@pytest.mark.parametrize("name", METHODS)
def test_other_numbers_of_shards_and_replicas_go_on(name, shards, replicas, runtime):
    config = METHODS[name]
    middle, its_loss = stopped(config)
    other = dataclasses.replace(config, shards=shards, replicas=replicas)
    cluster = CLUSTER if runtime == "virtual" else None
    result = dbjax.run(TASK, other, runtime=runtime, cluster=cluster, resume=middle)
    whole = dbjax.run(TASK, config, cluster=CLUSTER)
    # what the shards had is not lost: it goes on from where it was
    assert result.summary["full_loss"] < its_loss
    assert result.summary["time_s"] > middle.time_s
    if replicas == config.replicas:
        assert result.summary["updates"] == whole.summary["updates"]


def test_another_model_is_refused_in_one_line():
    middle, _ = stopped(METHODS["downpour sgd"])
    task = dataclasses.replace(
        TASK, params={"w": jnp.zeros(12), "b": jnp.zeros(())},
        loss=lambda params, batch: loss({"w": params["w"]}, batch) + params["b"] ** 2)  # fmt: skip
    with pytest.raises(ValueError, match="params/b is not there, here it is") as refused:
        dbjax.run(task, METHODS["downpour sgd"], cluster=CLUSTER, resume=middle)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"algorithm is dbjax.algorithms.downpour, here it is"):
        dbjax.run(TASK, METHODS["sgd"], cluster=CLUSTER, resume=middle)
