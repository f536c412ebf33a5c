"""Sweeps: the same trials however often they are killed and however many jobs there are."""

import csv
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from experiments.command_line import load_config
from experiments.sweep import __main__ as command
from experiments.sweep.on_ray import actors
from experiments.sweep.plan import Plan
from experiments.sweep.pool import Pool, Process
from experiments.sweep.run import sweep
from experiments.sweep.space import (
    Space,
    choice,
    integers,
    load_space,
    log_integers,
    log_uniform,
    uniform,
)
from experiments.sweep.trial import Job, Outcome, run_trial
from tests.processes import FAST, LIMIT_S

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
def quick(monkeypatch):
    """Workers compile little."""
    monkeypatch.setenv("XLA_FLAGS", FAST)


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


@pytest.mark.parametrize(("sampler", "count"), [("random", 20), ("grid", 40)])
def test_killed_twice_it_has_the_same_trials(sampler, count, tmp_path):
    given = [f"--sampler={sampler}", f"--trials={count}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command.main(arguments(whole, *given, "--jobs=1")) == 0
    given.append("--jobs=2")
    for ended in (count // 4, count // 2):
        killed(arguments(broken, *given), broken, ended)
        left = [state for _, _, state, *_ in trials(broken)]
        assert TrialState.RUNNING in left
        assert len(left) < count
    assert command.main(arguments(broken, *given)) == 0
    assert trials(broken) == trials(whole)
    assert len({str(one[1:]) for one in trials(whole)}) > 3 * count // 4  # and they differ
    for name in ("0007", f"{count - 9:04}"):
        metrics = [(path / "trials" / name / "metrics.jsonl") for path in (whole, broken)]
        assert metrics[0].read_bytes() == metrics[1].read_bytes()


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("random", "halving")])
def test_what_looks_back_does_not_see_the_number_of_jobs(sampler, pruner, tmp_path):
    given = [f"--sampler={sampler}", f"--pruner={pruner}", "--trials=12"]
    for jobs in (1, 2):
        assert command.main(arguments(tmp_path / str(jobs), *given, f"--jobs={jobs}")) == 0
    assert trials(tmp_path / "1") == trials(tmp_path / "2")
    assert any(state == TrialState.PRUNED for _, _, state, *_ in trials(tmp_path / "1"))


def test_more_trials_go_on_and_another_sweep_is_refused(tmp_path, capsys):
    assert command.main(arguments(tmp_path, "--trials=2")) == 0
    before = trials(tmp_path)
    assert command.main(arguments(tmp_path, "--trials=4")) == 0
    assert trials(tmp_path)[:2] == before
    assert len(trials(tmp_path)) == 4
    with pytest.raises(ValueError, match=r"holds a sweep with config.batch_size=32, here it is 8"):
        command.main(arguments(tmp_path, "--config.batch_size=8"))
    with pytest.raises(ValueError, match=r"holds a sweep with space.seed=0, here it is 1"):
        command.main(arguments(tmp_path, "--seed=1"))


def test_what_it_leaves(tmp_path, capsys):
    """The mean over seeds, every file, and a best config that is run with the same value."""
    given = ["--trials=3", "--seeds=2", "--cluster-seeds=2"]
    assert command.main(arguments(tmp_path / "sweep", *given)) == 0
    shown = capsys.readouterr().out
    assert "best of 3 trials by training loss" in shown
    assert "mean of 4 runs each" in " ".join(shown.split())
    folder = tmp_path / "sweep"
    assert {path.name for path in folder.iterdir()} >= {
        "best.py", "trials.csv", "fields.png", "parallel.png", "study.db", "sweep.json", "trials"
    }  # fmt: skip
    left = {str(path.relative_to(folder / "trials" / "0002"))
            for path in (folder / "trials" / "0002").rglob("*") if path.is_file()}  # fmt: skip
    assert left == {f"run_{k}/{name}" for k in range(4)
                    for name in ("config.json", "metrics.jsonl", "summary.json")}  # fmt: skip
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["train_loss"]))
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    values = study.trials[int(best["trial"])].user_attrs["values"]
    assert len(set(values)) == 4
    assert float(best["train_loss"]) == pytest.approx(sum(values) / 4)
    config = load_config(str(folder / "best.py"))
    again = ["experiments.run", f"--config={folder}/best.py", f"--workdir={tmp_path / 'run'}"]
    subprocess.run([sys.executable, "-m", *again], check=True, capture_output=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train_loss"] == values[0]
    assert config.cluster.machine.sigma == float(best["cluster.machine.sigma"])


CONFIG = load_config("configs/quickstart.py:smoke")
CONFIG.until_s, CONFIG.evaluations, CONFIG.evaluate_examples = 0.6, 3, 50


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    space = Space({"data.num_examples": choice(400, 3)}, sampler="grid")
    found = sweep(CONFIG, space, tmp_path)
    assert [row["state"] for row in found.rows].count("failed") == 1
    failed = next(t for t in found.study.trials if t.state == TrialState.FAIL)
    assert failed.user_attrs["error"].count("\n") == 0
    assert len(failed.user_attrs["error"]) > 10
    assert found.best.data.num_examples == 400


def test_a_worker_that_dies_costs_its_trial_only(tmp_path, monkeypatch):
    from experiments.sweep import run as sweeping

    started = []

    class Mortal(sweeping.Process):
        def __init__(self, log):
            super().__init__(log)
            if not started:
                self._process.kill()
            started.append(self)

    monkeypatch.setattr(sweeping, "Process", Mortal)
    found = sweep(CONFIG, Space({"seed": choice(0, 1, 2)}, sampler="grid"), tmp_path)
    assert [row["state"] for row in found.rows] == ["failed", "complete", "complete"]
    assert found.rows[0]["error"] == "its process died: SIGKILL"
    assert len(started) == 2


def test_ctrl_c_says_how_to_go_on(tmp_path):
    given = arguments(tmp_path, "--jobs=2", "--config.until_s=5", "--config.evaluations=50")
    running = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *given],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((tmp_path / "trials").glob("[0-9]*")):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted after ")
    assert said.splitlines()[-1].endswith(" of 40 trials: repeat the command to resume")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"rul.learning_rate": choice(1)},
            "config has no field 'rul.learning_rate'; nearest: 'rule'",
        ),
        ({"rule.learning_rat": choice(1)}, "no argument 'learning_rat'; nearest: 'learning_rate'"),
        ({"options.n_fech": choice(1)}, "options has no 'n_fech'; nearest: 'n_fetch'"),
        ({"data.num_exampls": choice(1)}, "has no 'num_exampls'; nearest: 'num_examples'"),
        ({"model.l3": choice(1)}, "model 'softmax' has no 'l3'"),
        ({"batch_size": uniform(1, 2)}, r"batch_size=1.0 must be int"),
        ({"options.replicas": choice(4, 0)}, "downpour.replicas=0 must be at least 1"),
        ({"batch_size": 3}, r"'batch_size' is 3; write choice\(3\)"),
        ({}, "SPACE must be a dict"),
        ({1: choice(1, 2)}, "SPACE: 1 is not a field name: write it as a string"),
        ({"runtime": choice("ray", "virtual")}, "runtime='ray' is not for sweeps"),
        ({"runtime": choice("virtual", "ray")}, "runtime='ray' is not for sweeps"),
        ({"runtime": choice("virtual", "thread")}, "runtime='thread' is neither 'virtual' nor"),
        (
            {
                "cluster.machine.law": choice("lognormal", "constant"),
                "cluster.machine.sigma": choice(0.0, 0.2),
            },
            r"sigma=0\.2 has no effect: .* may choose cluster\.machine\.law='constant', cluster",
        ),
        (
            {"cluster.machine.law": choice("lognormal", "constant")}
            | {"cluster.machine.sigma": choice(0.0, 0.2)}
            | {f"{group}seed": choice(*range(9)) for group in ("", "data_", "cluster.", "data.")},
            r"sigma=0\.2 has no effect: ",  # where there are too many combinations for all
        ),
    ],
)
def test_a_bad_space_is_one_line_before_anything_starts(change, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        sweep(CONFIG, Space(change), tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "study.db").exists()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--sampler=gird"], "unknown sampler 'gird'; nearest: 'grid'"),
        (["--pruner=medien"], "unknown pruner 'medien'; nearest: 'median'"),
        (["--metric=acuracy"], "unknown metric 'acuracy'; nearest: 'test_accuracy'"),
        (["--on=rai"], "unknown on=rai; nearest: 'ray'"),
        (["--jobs=0"], "jobs=0 must be an integer of at least 1"),
        (["--trials=many"], "--trials=many must be an integer"),
        (["--sampler=grid", "--trials=41"], "trials=41, but the grid has 40 points"),
        (["--space=configs/spaces/speech.py"], "no space file .* nearest: 'configs/spaces/speech"),
        (["--pruner=median", "--config.until_s=none"], "a pruner needs until_s"),
    ],
)
def test_bad_arguments_are_named(given, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        command.main(arguments(tmp_path, *given))


def test_a_misspelt_constant_is_named(tmp_path):
    file = tmp_path / "space.py"
    file.write_text("from experiments.sweep.space import choice\nSPACE = {}\nSAMPLR = 'grid'\n")
    with pytest.raises(ValueError, match="unknown name 'SAMPLR'; nearest: 'SAMPLER'"):
        load_space(str(file))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: uniform(0, float("inf")), "uniform: high=inf must be a finite float"),
        (lambda: uniform(float("nan"), 1), "uniform: low=nan must be a finite float"),
        (lambda: uniform("a", 1), "uniform: low='a' must be a finite float"),
        (lambda: uniform(1, 0), "uniform: low=1 is above high=0"),
        (lambda: uniform(0, 1, points=0), "uniform: points=0 must be at least 1"),
        (lambda: uniform(0, 1, points=2.5), r"uniform: points=2\.5 must be int"),
        (lambda: log_uniform(1e-3, float("inf")), "log_uniform: high=inf must be a finite float"),
        (lambda: integers(0.5, 3), r"integers: low=0\.5 must be a finite int"),
        (lambda: integers(3, 1), "integers: low=3 is above high=1"),
        (lambda: integers(1, 3, step=0), "integers: step=0 must be at least 1"),
        (lambda: log_integers(1, 9, points=0), "log_integers: points=0 must be at least 1"),
        (lambda: choice(1.0, float("nan")), "choice: nan is not a valid value"),
    ],
)
def test_values_that_are_none_are_named(made, text):
    with pytest.raises(ValueError, match=text):
        made()


def test_integers_in_steps_end_at_the_last_step():
    assert integers(1, 10, step=4).grid == (1, 5, 9)
    assert integers(1, 10, step=4).distribution.high == 9


def test_several_clusters_are_refused_where_none_is_modelled():
    space = Space({"seed": choice(0, 1)}, cluster_seeds=3)
    config = load_config("configs/quickstart.py:smoke")
    config.runtime = "threads"
    with pytest.raises(ValueError, match="cluster_seeds=3 has no effect: it needs runtime=virtual"):
        Plan(config, space)
    several = Space({"runtime": choice("threads", "virtual")}, cluster_seeds=3)
    assert Plan(config, several).runs == 3


@pytest.mark.parametrize("file", sorted(map(str, Path("configs/spaces").glob("*.py"))))
def test_every_space_fits_its_config_and_names_its_command(file):
    from experiments.sweep.plan import Plan

    config = f"configs/{Path(file).name}"
    text = Path(file).read_text()
    assert f"--space={file}" in text
    assert f"--config={config}" in text
    for variant in ("", ":smoke"):
        assert Plan(load_config(config + variant), load_space(file)).metric == "test_accuracy"


def test_a_grid_has_every_point_once_and_a_regression_a_loss():
    from experiments.sweep.plan import Plan

    space = Space({"cluster.latency_s": uniform(0, 1, points=3), "rule.memory": choice(5, 10)},
                  sampler="grid")  # fmt: skip
    points = [tuple(space.point(k).values()) for k in range(6)]
    assert sorted(points) == [(x, m) for x in (0.0, 0.5, 1.0) for m in (5, 10)]
    plan = Plan(load_config("configs/quadratic_sandblaster.py"), space)
    assert (plan.metric, plan.direction) == ("test_loss", "minimize")
    assert log_uniform(1e-3, 1e-1, points=3).grid == pytest.approx((1e-3, 1e-2, 1e-1))


@pytest.mark.slow
def test_workers_on_ray_give_the_same_trials(tmp_path):
    given = ["--trials=6", "--jobs=2", "--pruner=median", "--config.ray.address=local"]
    for on in ("processes", "ray"):
        assert command.main(arguments(tmp_path / on, *given, f"--on={on}")) == 0
    assert trials(tmp_path / "ray") == trials(tmp_path / "processes")


def test_a_pruned_trial_is_one_run_that_ends_there():
    def look(k, value):
        asked.append(k)
        return k == 2

    asked = []
    config = load_config("configs/quickstart.py:smoke")
    found = run_trial(Job(config, "test_accuracy", seeds=2, cluster_seeds=1, prunes=True), look)
    assert (found.pruned, len(found.values), found.error) == (True, 1, "")
    assert asked == [1, 2]


def test_nothing_is_pruned_before_its_time():
    """Of the evaluations of a run; a run that warms up slowly is not compared before."""
    config = load_config("configs/quickstart.py:smoke")
    config.until_s, config.evaluations = 10.0, 20
    space = Space({"rule.learning_rate": log_uniform(0.01, 0.1)}, pruner="median")
    good = create_trial(
        params={"rule.learning_rate": 0.05},
        distributions=space.distributions,
        value=0.9,
        intermediate_values=dict.fromkeys(range(1, 21), 0.9),
    )

    def first_look(**chosen):
        """The first evaluation after which a bad trial is told to stop."""
        bad = Plan(config, dataclasses.replace(space, **chosen)).asked(5, [good] * 5)
        for k in range(1, 21):
            bad.report(0.1, k)
            if bad.should_prune():
                return k
        return None

    assert first_look() == 2
    assert first_look(prune_from=0.3) == 6
    with pytest.raises(ValueError, match=r"prune_from=1\.5"):
        dataclasses.replace(space, prune_from=1.5)


def test_a_signal_to_all_processes_cuts_no_trial_short(tmp_path):
    """SIGTERM to a worker alone does nothing: its driver says when it ends."""
    pool = Pool(functools.partial(Process, tmp_path / "log"), 1)
    config = load_config("configs/quickstart.py:smoke")
    config.evaluations = 50
    with pool:
        pool.give(0, Job(config, "test_accuracy", 1, 1, prunes=False))
        said = pool.messages(60)
        ((worker, _),) = pool._busy.values()
        worker._process.send_signal(signal.SIGTERM)
        while not isinstance(said[0][1], Outcome):
            said = pool.messages(60)
    assert said[0][1].error == ""
    assert json.loads(said[0][1].files["summary.json"])["interrupted"] is None


class Dies:
    """A job that ends the process in which it is looked at."""

    @property
    def prunes(self):
        os._exit(1)


@pytest.mark.slow
def test_a_worker_on_ray_that_dies_is_an_outcome():
    ray = pytest.importorskip("ray", reason="dbjax[ray] is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with actors("local") as start, Pool(start, 1) as pool:
        pool.give(0, Dies())
        ((number, outcome),) = pool.messages(LIMIT_S)
    assert number == 0
    assert outcome.error == "its process died: on Ray"
