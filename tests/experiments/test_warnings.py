"""What went wrong in runs: in the terminal, in files, on the page, in sweeps and in figures."""

import json
import logging
import math

import pytest

from dbjax.monitoring.health import kind
from experiments import run
from experiments import runs as many
from experiments.accuracy import guessing
from experiments.command_line import load_config
from experiments.figure4.claims import claims
from experiments.figure4.methods import METHODS
from experiments.figure5.points import points
from experiments.figure5.results import claims as claims_of_points
from experiments.report import page
from experiments.report.read import read
from experiments.sweep.run import sweep
from experiments.sweep.space import Space, choice
from tests.experiments.runs import ROWS, leave
from tests.experiments.test_figure4 import ADAGRAD, FIXED, SGD, made_up
from tests.processes import FAST

CONFIG = load_config("configs/quickstart.py:smoke")
CONFIG.until_s, CONFIG.evaluations, CONFIG.evaluate_examples = 0.6, 3, 50
CONFIG.checkpoint.keep = 0
WRONG = "diverged: by 10 s, 9 of the last 9 training losses are not finite"


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    """Workers compile little, and once."""
    monkeypatch.setenv("XLA_FLAGS", FAST)
    cache = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def run_in_a_terminal(monkeypatch, *arguments):
    """As if nobody else, such as pytest, had set logging up."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run.main(["--config=configs/quickstart.py:smoke", *arguments]) == 0


def test_a_run_that_diverges_says_so_everywhere(tmp_path, capsys, monkeypatch):
    given = ["--config.rule.learning_rate=1e30", "--config.until_s=2", f"--workdir={tmp_path}"]
    run_in_a_terminal(monkeypatch, *given)
    shown = capsys.readouterr()
    summary = json.loads((tmp_path / "summary.json").read_text())
    kinds = list(map(kind, summary["warnings"]))
    assert kinds == ["diverged", "overflowed parameters"]
    for one in kinds:  # once as it happens, once among the summary's numbers
        assert sum(line.startswith(f"{one}: ") for line in shown.err.splitlines()) == 1
        assert shown.out.count(f"{one}:") == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[1:]]
    said = [kind(warning) for row in rows for warning in row.get("warnings", ())]
    assert said == ["diverged"]  # the parameters are looked at in the end
    found = page.data([read(tmp_path, "mine")])
    assert found["warnings"] == [f"mine {warning}." for warning in summary["warnings"]]


def test_a_run_without_a_rate_learns_nothing_and_says_so(tmp_path, capsys, monkeypatch):
    run_in_a_terminal(monkeypatch, "--config.rule.learning_rate=0.0", f"--workdir={tmp_path}")
    warnings = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert list(map(kind, warnings)) == ["unchanged parameters", "no better than a guess"]
    assert capsys.readouterr().err.count("no better than a guess: test_accuracy is ") == 1


def test_the_page_of_a_run_that_goes_on_says_what_is_known(tmp_path):
    rows = [ROWS[0], ROWS[1] | {"warnings": [WRONG]}]
    unfinished = read(leave(tmp_path / "one", rows=rows, ended=False), "one")
    ordinary = read(leave(tmp_path / "other"), "other")
    told = page.data([unfinished, ordinary])["warnings"]
    assert [one for one in told if "diverged" in one] == [f"one {WRONG}."]
    assert not any(one.startswith("other") for one in told)


def test_a_sweep_counts_its_trials_that_went_wrong(tmp_path, caplog):
    """In one line, and not trial by trial."""
    caplog.set_level(logging.WARNING, "dbjax")
    space = Space({"rule.learning_rate": choice(0.05, 1e30, 1e31)}, sampler="grid")
    found = sweep(CONFIG, space, tmp_path)
    for row in found.rows:
        wrong = row["rule.learning_rate"] > 1
        assert row["warnings"].split(", ")[0] == ("diverged" if wrong else "")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("of 3 trials, diverged: 2, ")
    assert "diverged" in (tmp_path / "trials.csv").read_text()


def test_runs_of_a_figure_that_went_wrong_are_named_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "dbjax")
    wild = CONFIG.copy_and_resolve_references()
    wild.rule.learning_rate = 1e30
    for _ in range(2):  # run, and then read
        caplog.clear()
        many.run_all({"wild": wild, "good": CONFIG}, tmp_path, 1, "some")
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("some: 1 of 2 runs went wrong: wild (diverged, ")


GUESS = {"most_frequent_class": {"share": 0.3, "examples": 100}}  # up to 0.392 by chance
LEARNED, NOTHING = [0, 0.4, 0.5, 0.5, 0.5], [0, 0.3, 0.3, 0.3, 0.3]
RULES = {"downpour": FIXED, "downpour_adagrad": ADAGRAD, "downpour_adagrad_200": ADAGRAD}
REPLICAS = {"downpour": 20, "downpour_adagrad": 20, "downpour_adagrad_200": 200}


def told(key, accuracies):
    made = made_up(REPLICAS.get(key, 1), accuracies, RULES.get(key, SGD))
    made.summary.update(GUESS)
    return made


def runs_with(*nothing):
    """Two seeds of each method; the second one of `nothing` learned nothing."""
    return {
        key: [told(key, LEARNED), told(key, NOTHING if key in nothing else LEARNED)]
        for key in METHODS
    }


def without_a_verdict(said):
    return [claim.paper.split(" (taken")[0] for claim in said if claim.verdict == "no verdict"]


def test_figure_4_gives_verdicts_where_all_runs_learned_something():
    assert without_a_verdict(claims(runs_with())) == []


def test_figure_4_gives_no_verdict_by_a_run_that_learned_nothing():
    said = claims(runs_with("downpour"))
    assert without_a_verdict(said) == [
        "Downpour [20] is clearly faster than SGD [1]",
        "Downpour + Adagrad [20] is modestly faster again",
        "Downpour + Adagrad [200] is the fastest of all",
        "gamma of Adagrad is larger than the best fixed rate, perhaps by an order of magnitude",
    ]
    assert said[0].ours.endswith(
        "(no verdict, since runs learned nothing: Downpour [20] of seed 1 has 30.0%, and 30.0% of "
        "100 examples are of the most frequent class)"
    )


def test_figure_4_gives_no_verdict_where_what_all_are_held_against_learned_nothing():
    said = claims(runs_with("sgd"))
    rates = [claim for claim in said if claim.paper.startswith("gamma")]
    assert len(without_a_verdict(said)) == len(said) - 1
    assert rates[0].verdict != "no verdict"  # SGD [1] is no part of it


@pytest.mark.parametrize(("nothing", "verdicts"), [
    ((), 0), (("downpour",), 3), (("sandblaster",), 2), (("sgd",), 3), (("gpu",), 0),
])  # fmt: skip
def test_figure_5_gives_no_verdict_by_runs_that_learned_nothing(nothing, verdicts):
    """The GPU is in no sentence; Sandblaster not in that of Downpour's deadlines."""
    runs = {(key, REPLICAS.get(key, 1)): mine for key, mine in runs_with(*nothing).items()
            if key != "downpour_adagrad_200"}  # fmt: skip
    said = claims_of_points(points(runs, 0.5), 5.0)
    assert len(without_a_verdict(said)) == verdicts
    for claim in said:
        assert (claim.verdict == "no verdict") == ("learned nothing" in claim.ours)


def test_what_noise_explains_is_no_learning():
    for accuracy, names in ((0.39, 1), (0.4, 0)):
        assert len(guessing("SGD [1]", [told("sgd", [0, accuracy])])) == names
    assert guessing("SGD [1]", [made_up(1, [0, 0.0], SGD)]) == []  # nothing is known of classes
    assert guessing("SGD [1]", [told("sgd", [0, math.nan])]) == []
