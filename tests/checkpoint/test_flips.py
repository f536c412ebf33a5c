"""Damaged checkpoints: the run ends as it would have, and the log says what was damaged."""

import collections
import json
import logging
import pathlib
import pkgutil
import random
import shutil

import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.checkpoint import Checkpoints
from experiments import run
from tests.test_conformance import CLUSTER, TASK

# Orbax reads all arrays of a damaged checkpoint at once: it raises the first error, and Python says
# of the others that nobody looked at them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = downpour.Config(optax.adagrad(0.1), replicas=2, shards=2, steps=12)
GIVEN = {"cluster": CLUSTER, "checkpoint_every": dbjax.Every(0.3)}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The checkpoints of a run that was stopped, and the digest of one that was not."""
    path = tmp_path_factory.mktemp("interrupted") / "checkpoints"
    with Checkpoints(path, keep=3) as checkpoints:
        dbjax.run(TASK, CONFIG, until_s=1.0, checkpoints=checkpoints, **GIVEN)
    assert sorted(p.name for p in path.iterdir()) == ["2", "3", "4"]
    return path, dbjax.run(TASK, CONFIG, **GIVEN).summary["params_sha256"]


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip(path, draws):
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def resumed_rows(path, caplog):
    """The digest of the run that goes on from there, and what was said of damage."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dbjax"), Checkpoints(path, keep=3) as checkpoints:
        result = dbjax.run(TASK, CONFIG, resume=checkpoints.latest(), **GIVEN)
    return result.summary["params_sha256"], [
        r.getMessage() for r in caplog.records if r.name == "dbjax"
    ]


def test_a_flipped_bit_changes_no_result(interrupted, tmp_path, caplog):
    whole, digest = interrupted
    draws, newest = random.Random(0), files(whole / "4")
    for number, file in enumerate(newest):  # one in each; those of older ones are not read
        path = tmp_path / str(number)
        shutil.copytree(whole, path)
        damaged = path / file.relative_to(whole)
        flip(damaged, draws)
        found, said = resumed_rows(path, caplog)
        assert found == digest
        if said:
            assert said == [
                f"checkpoint {path / '4'} is damaged and skipped: {damaged} has changed since it "
                f"was written; {path / '3'} is used instead"
            ]
        else:
            assert file.name in ("_CHECKPOINT_METADATA", "commit_success.txt")


def ways(path):
    """What else may happen to the newest checkpoint, and what is said then."""
    newest, about = path / "4", path / "4" / "about" / "metadata"
    return {
        "cut": (lambda: about.write_bytes(about.read_bytes()[:-1]), f"{about} has changed since"),
        "empty file": (lambda: about.write_bytes(b""), f"{about} has changed since"),
        "deleted file": (about.unlink, f"{about} is missing"),
        "deleted folder": (lambda: shutil.rmtree(newest / "arrays"), "is missing"),
        "no digests": ((newest / "digests").unlink, f"{newest / 'digests'} is missing"),
        "empty directory": (lambda: (path / "7").mkdir(), f"{path / '7' / 'digests'} is missing"),
        "other values": (
            lambda: shutil.copytree(path / "3" / "arrays", newest / "arrays", dirs_exist_ok=True),
            "has changed since it was written"),
        "extra files": (lambda: [(p / "extra").write_text("x") for p in (path, newest)], None),
    }  # fmt: skip


@pytest.mark.parametrize("way", ways(pathlib.Path()))
def test_other_damage(way, interrupted, tmp_path, caplog):
    whole, digest = interrupted
    path = tmp_path / "checkpoints"
    shutil.copytree(whole, path)
    damage, expected = ways(path)[way]
    damage()
    found, said = resumed_rows(path, caplog)
    assert found == digest
    assert len(said) == (expected is not None)
    assert all(expected in line and line.endswith("is used instead") for line in said)


@pytest.mark.parametrize(
    "broken", ["checkpoint.exact.exact.thaw", "runtime.virtual.VirtualRuntime.fast_forward"]
)
def test_one_that_cannot_be_restored_gives_way_to_the_one_before(
    broken, interrupted, caplog, monkeypatch
):
    path, digest = interrupted
    before, calls = pkgutil.resolve_name(f"dbjax.{broken}"), []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyError("a bug")
        return before(*args)

    monkeypatch.setattr(f"dbjax.{broken}", fails_once)
    found, said = resumed_rows(path, caplog)
    assert found == digest
    assert said == [
        f"checkpoint {path / '4'} cannot be restored: KeyError: 'a bug'; {path / '3'} is used "
        "instead"
    ]


def test_where_none_can_be_restored_the_error_names_the_newest(interrupted, monkeypatch):
    path, _ = interrupted

    def fails(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("dbjax.checkpoint.exact.exact.thaw", fails)
    with Checkpoints(path) as checkpoints:
        content = checkpoints.latest()
        with pytest.raises(ValueError, match=r"4 cannot be restored: KeyError.*no other") as error:
            dbjax.run(TASK, CONFIG, resume=content, **GIVEN)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_200_flips_over_the_checkpoints_of_a_command(tmp_path, caplog, capsys):
    """Every one ends in the same files, or says what is damaged and what is used instead."""
    given = ["--config=configs/quickstart.py:smoke", "--config.options.replicas=4",
             "--config.checkpoint.every_s=0.2"]  # fmt: skip
    short = ["--config.until_s=0.5", "--config.evaluations=5"]
    longer = ["--config.until_s=1.0", "--config.evaluations=10"]

    def left(workdir):
        summary = json.loads((workdir / "summary.json").read_text())
        del summary["wall_s"], summary["executor"]
        return summary, (workdir / "metrics.jsonl").read_bytes()

    assert run.main([*given, *longer, f"--workdir={tmp_path / 'once'}"]) == 0
    assert run.main([*given, *short, f"--workdir={tmp_path / 'cut'}"]) == 0
    (tmp_path / "cut" / "summary.json").unlink()  # as one that was killed
    expected, draws = left(tmp_path / "once"), random.Random(1)
    outcomes = collections.Counter()
    for number in range(200):
        workdir = tmp_path / f"flip{number}"
        shutil.copytree(tmp_path / "cut", workdir)
        damaged = draws.choice(files(workdir / "checkpoints"))
        flip(damaged, draws)
        caplog.clear()
        assert run.main([*given, *longer, f"--workdir={workdir}"]) == 0
        said = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
        assert left(workdir) == expected
        assert all(f"{damaged} has changed since it was written" in line for line in said)
        assert all("is used instead" in line for line in said)
        outcomes["said so" if said else "same bytes"] += 1
        shutil.rmtree(workdir)
    with capsys.disabled():
        print(f"\n200 flips: {dict(outcomes)}")
