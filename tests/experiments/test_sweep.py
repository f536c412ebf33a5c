"""Sweeps: the same trials however often they are killed and however many jobs there are."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from experiments import run
from experiments.command_line import load_config
from experiments.sweep import __main__ as command
from experiments.sweep.run import sweep
from experiments.sweep.space import Space, choice, load_space, log_uniform, uniform
from tests.processes import FAST

SPACE = str(Path(__file__).with_name("small_space.py"))
CHEAP = [
    "--config=configs/quickstart.py:smoke",
    "--config.options.replicas=2",
    "--config.options.shards=1",
    "--config.until_s=0.6",
    "--config.evaluate_examples=50",
    "--config.evaluations=3",
    "--config.data.num_examples=400",
    "--metric=train_loss",
]


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    """Workers compile little, and once."""
    cache = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("XLA_FLAGS", FAST)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def arguments(workdir, *more):
    return [*CHEAP, f"--space={SPACE}", f"--workdir={workdir}", *more]


def trials(workdir):
    """What must be the same: numbers, parameters, states, values, intermediate values."""
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{workdir}/study.db")
    return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in study.trials]


def killed(given, workdir, ended):
    """Starts the command, and kills its driver once so many trials have ended."""
    running = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *given],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list((workdir / "trials").glob("[0-9]*"))) < ended:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_killed_twice_it_has_the_same_trials(sampler, tmp_path):
    given = [f"--sampler={sampler}", "--jobs=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command.main(arguments(whole, f"--sampler={sampler}", "--jobs=1")) == 0
    for ended in (9, 23):
        killed(arguments(broken, *given), broken, ended)
        left = [state for _, _, state, *_ in trials(broken)]
        assert TrialState.RUNNING in left
        assert len(left) < 40
    assert command.main(arguments(broken, *given)) == 0
    assert trials(broken) == trials(whole)
    assert len({str(one[1:]) for one in trials(whole)}) > 30  # and they differ
    for name in ("0007", "0031"):
        metrics = [(path / "trials" / name / "metrics.jsonl") for path in (whole, broken)]
        assert metrics[0].read_bytes() == metrics[1].read_bytes()


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("random", "halving")])
def test_what_looks_back_does_not_see_the_number_of_jobs(sampler, pruner, tmp_path):
    given = [f"--sampler={sampler}", f"--pruner={pruner}", "--trials=16"]
    for jobs in (1, 2):
        assert command.main(arguments(tmp_path / str(jobs), *given, f"--jobs={jobs}")) == 0
    assert trials(tmp_path / "1") == trials(tmp_path / "2")
    assert any(state == TrialState.PRUNED for _, _, state, *_ in trials(tmp_path / "1"))
