"""What a sweep draws, runs and reckons, by hand: no trial is run."""

import dataclasses
import math
import statistics
import types

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from experiments.command_line import load_config
from experiments.sweep import results, trial
from experiments.sweep.plan import Plan
from experiments.sweep.space import Space, integers, log_integers, log_uniform, uniform
from experiments.sweep.trial import Job, Outcome

CONFIG = load_config("configs/quickstart.py:smoke")
SPACE = Space({"rule.learning_rate": log_uniform(1e-3, 1e-1)})


def plan(space=SPACE, **changes):
    return Plan(CONFIG, dataclasses.replace(space, **changes))


def study(direction, *values):
    made = optuna.create_study(direction=direction)
    for number, value in enumerate(values):
        made.add_trial(create_trial(
            params={"rule.learning_rate": 0.01 * (number + 1)}, value=value,
            distributions=SPACE.distributions,
            state=TrialState.COMPLETE if value is not None else TrialState.FAIL,
            user_attrs={"values": [value, value + 2.0, value + 4.0]} if value else {"error": "e"},
        ))  # fmt: skip
    return made


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy():
    for metric, direction, number in (
        ("train_loss", "minimize", 2),
        ("test_accuracy", "maximize", 1),
    ):
        of = plan(metric=metric)
        assert of.direction == direction
        found = results.found(of, study(direction, 0.5, 0.9, 0.1, None), None, "x")
        assert found.best_row["trial"] == number
        assert found.best.rule.learning_rate == pytest.approx(0.01 * (number + 1))
        assert [row["state"] for row in found.rows] == ["complete"] * 3 + ["failed"]
    assert results.found(plan(), study("maximize", None), None, "x").best is None


def test_deviations_are_those_of_a_sample():
    """Of v, v + 2, v + 4: 2, where all of a population would have 1.63."""
    row = results.found(plan(), study("maximize", 0.5), None, "x").rows[0]
    assert row["deviation"] == pytest.approx(2.0)
    assert statistics.pstdev([0, 2, 4]) < 1.7


def seeded(seed, data_seed, cluster_seed):
    config = CONFIG.copy_and_resolve_references()
    config.seed, config.data_seed, config.cluster.seed = seed, data_seed, cluster_seed
    return config


def runs_of(config, seeds, cluster_seeds, monkeypatch, values=(0.5, 0.25, 0.125, 1.0)):
    """The seeds that each run of a trial has, and the outcome; no run is made."""
    seen = []

    def run(config, method, metric, folder, look):
        value = values[len(seen)]
        seen.append((config.seed, config.data_seed, config.cluster.seed))
        look(0, value)
        return types.SimpleNamespace(evaluations=[{metric: value}], summary={"warnings": []})

    monkeypatch.setattr(trial, "_run", run)
    looked = []

    def look(k, value):
        looked.append(value)
        return False

    job = Job(config, "train_loss", seeds, cluster_seeds, prunes=False)
    outcome = trial.run_trial(job, look)
    assert looked == [values[0]]  # only the first run is looked at
    return seen, outcome


def test_runs_of_a_trial_have_seeds_of_their_own(monkeypatch):
    seen, outcome = runs_of(seeded(3, 40, 500), 2, 2, monkeypatch)
    assert seen == [(3, 40, 500), (3, 40, 501), (4, 41, 500), (4, 41, 501)]
    assert outcome.values == (0.5, 0.25, 0.125, 1.0)
    assert outcome.value == 1.875 / 4
    # seeds that are not given follow that of the run; delays are those of the first one
    seen, _ = runs_of(seeded(3, None, None), 2, 2, monkeypatch)
    assert seen == [(3, None, 3), (3, None, 4), (4, None, 3), (4, None, 4)]


def test_a_run_that_ends_in_no_number_is_an_error(monkeypatch):
    _, outcome = runs_of(CONFIG, 1, 2, monkeypatch, values=(0.5, math.nan))
    assert outcome.error == "train_loss is nan at the end"
    assert outcome.values == ()


def test_what_goes_wrong_is_one_line(monkeypatch):
    def fails(*_):
        raise KeyError("a\nb")

    monkeypatch.setattr(trial, "_run", fails)
    outcome = trial.run_trial(Job(CONFIG, "train_loss", 1, 1, prunes=False), lambda k, v: False)
    assert outcome.error.startswith("KeyError: ")
    assert "\n" not in outcome.error


def test_every_trial_is_drawn_from_its_number_and_the_seed():
    def drawn(number, **changes):
        return plan(**changes).asked(number, []).params["rule.learning_rate"]

    assert drawn(3) == drawn(3)
    rates = [drawn(number) for number in range(8)] + [drawn(0, seed=1)]
    assert len(set(rates)) == 9
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)


def test_grids_by_hand():
    assert uniform(0, 1, points=3).grid == (0.0, 0.5, 1.0)
    assert log_uniform(1, 100, points=3).grid == pytest.approx((1, 10, 100))
    assert integers(2, 8, step=3).grid == (2, 5, 8)
    assert log_integers(1, 100, points=3).grid == (1, 10, 100)
    space = Space({"a": integers(0, 1), "b": integers(0, 2)}, sampler="grid")
    points = {tuple(space.point(k).values()) for k in range(space.points)}
    assert points == {(a, b) for a in range(2) for b in range(3)}
    assert space.point(0) != dataclasses.replace(space, seed=1).point(0)
    assert (space.count, dataclasses.replace(space, sampler="random").count) == (6, 20)


def test_files_of_an_outcome_are_left_all_or_none(tmp_path):
    folder = tmp_path / "0003"
    folder.mkdir()
    (folder / "old").write_text("")
    Outcome(files={"a/b.json": "1", "c": "2"}).leave(folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"a/b.json", "c"}
    assert [path.name for path in tmp_path.iterdir()] == ["0003"]
    Outcome().leave(tmp_path / "0004")
    assert not (tmp_path / "0004").exists()
