"""Processes that are killed: what comes of them is what comes of one that was left alone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.processes import FAST


def points(tmp_path, count, number):
    module, given = "tests.checkpoint.killed", (tmp_path, count, int(number))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, given)],
        capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": FAST},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["other"]  # another seed leaves other bytes
    assert all(point["again"] == 0 for point in found["points"]), done.stderr
    return found["points"]


def require_same(found, code):
    assert all(point["same"] for point in found), found
    assert any(point["code"] == code and point["checkpoints"] for point in found), found


def test_killed_at_any_moment_a_run_leaves_the_same_bytes(tmp_path):
    require_same(points(tmp_path, 3, signal.SIGKILL), -signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_50_moments_a_run_leaves_the_same_bytes_50_times(tmp_path):
    found = points(tmp_path, 50, signal.SIGKILL)
    require_same(found, -signal.SIGKILL)
    assert len({point["checkpoints"] for point in found}) > 1


def test_asked_to_end_a_run_leaves_a_checkpoint_and_loses_nothing(tmp_path):
    found = points(tmp_path, 2, signal.SIGTERM)
    assert all(point["same"] for point in found), found
    assert all(point["code"] == 143 and point["checkpoints"] for point in found), found
