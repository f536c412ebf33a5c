"""Figures 4 and 5 at their smallest, end to end; what they say of runs that are made up."""

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import _figure4 as assumed
from configs._figure4 import (
    BYTES,
    GPU_STEP_S,
    JITTER,
    MACHINES,
    SHARDS,
    SIZES,
    servers,
    step_s,
    transfer_s,
)
from dbjax.costs.speedup import phased_step, predicted
from dbjax.models import PAPER
from dbjax.runtime.presets import GOOGLE_2012, GPU_2012
from experiments import build, figures
from experiments import runs as many
from experiments.claims import Claim
from experiments.command_line import load_config
from experiments.defaults import flat
from experiments.figure3.networks import compiled
from experiments.figure4 import __main__ as figure4
from experiments.figure4 import tuning
from experiments.figure4.claims import Sooner, claims
from experiments.figure4.methods import METHODS
from experiments.figure4.options import tuning as words_of_tuning
from experiments.figure4.picture import figure
from experiments.figure4.tuning import seeded
from experiments.figure5 import __main__ as figure5
from experiments.figure5.points import REPLICAS, Point, configs
from experiments.figure5.results import claims as claims_of_points
from experiments.report.read import Run, Spans
from experiments.sweep.space import load_space
from tests.processes import FAST, LIMIT_S


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Workers compile little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", FAST)
        yield


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What both commands leave, one seed each."""
    folder = tmp_path_factory.mktemp("figures")
    given = ["--size=smoke", "--seeds=1", "--jobs=2", f"--runs={folder}/runs"]
    assert figure4.main([*given, f"--workdir={folder}/figure4"]) == 0
    assert figure5.main([*given, f"--workdir={folder}/figure5"]) == 0
    return folder


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_figure_4_leaves_its_table_its_picture_and_its_claims(smoke):
    rows = table(smoke / "figure4/figure4.csv")
    assert len({row["method"] for row in rows}) == len(METHODS)
    assert len(rows) == len(METHODS) * (1 + SIZES["smoke"].evaluations)
    assert max(float(row["time_s"]) for row in rows) == SIZES["smoke"].until_s
    assert (smoke / "figure4/figure4.png").stat().st_size > 20_000
    assert (
        "the final accuracy of SGD [1] with the same seed"
        in (smoke / "figure4/claims.md").read_text()
    )


def test_figure_5_goes_by_the_same_runs(smoke):
    rows = table(smoke / "figure5/figure5.csv")
    assert len(rows) == 1 + sum(map(len, REPLICAS["smoke"]))
    found = {(row["method"], row["replicas"]): row for row in rows}
    assert found["Downpour", "4"]["machines"] == "64"  # 4 x 8, and as many for the parameters
    assert found["GPU", "1"]["machines"] == "1"
    assert (smoke / "figure5/figure5.png").stat().st_size > 20_000


def test_every_run_of_the_smoke_size_learns_something(smoke):
    """Else there is no verdict, and what is said of such figures is not tested."""
    summaries = [json.loads(p.read_text()) for p in smoke.glob("runs/*/seed_1/summary.json")]
    assert len(summaries) == 14
    assert [summary["warnings"] for summary in summaries] == [[]] * 14
    for name in ("figure4", "figure5"):
        assert "no verdict" not in (smoke / name / "claims.md").read_text()


def test_what_is_there_is_not_run_again(smoke, monkeypatch):
    def nobody(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(many, "Process", nobody)
    given = ["--size=smoke", "--seeds=1", f"--runs={smoke}/runs"]
    assert figure4.main([*given, f"--workdir={smoke}/again"]) == 0
    assert table(smoke / "again/figure4.csv") == table(smoke / "figure4/figure4.csv")
    config = load_config("configs/figure4/sgd.py:smoke")
    with pytest.raises(AssertionError, match="started"):  # another seed is another run
        many.run_all({"sgd_1/seed_1": config}, smoke / "runs", 1, "other")


def test_a_run_that_was_cut_short_is_run_again(smoke, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(smoke / "runs/sgd_1/seed_1", runs / "mine")
    path = runs / "mine/summary.json"
    summary = json.loads(path.read_text())
    config = seeded(load_config("configs/figure4/sgd.py:smoke"), 1)
    before = path.stat().st_mtime_ns
    assert many.run_all({"mine": config}, runs, 1, "one")["mine"].state == "finished"
    assert path.stat().st_mtime_ns == before
    path.write_text(json.dumps(summary | {"interrupted": "SIGTERM"}))
    assert many.run_all({"mine": config}, runs, 1, "one")["mine"].state == "finished"
    assert json.loads(path.read_text())["params_sha256"] == summary["params_sha256"]


def test_winners_of_the_tuning_are_what_is_run(tmp_path, monkeypatch):
    """Two trials of SGD; what another size and another method had stays."""
    tuned = tmp_path / "tuned.json"
    other = {"laptop": {"gpu": {"fields": {"rule.learning_rate": 0.3}, "trials": 2}}}
    tuned.write_text(json.dumps(other))
    for module in (assumed, tuning):
        monkeypatch.setattr(module, "TUNED", tuned)
    monkeypatch.setattr(assumed, "TRIALS", 2)
    untuned = METHODS["sgd"].config("smoke").rule.learning_rate
    assert tuning.tune("smoke", ["sgd"], tmp_path / "sweeps", 2) is None
    found = json.loads(tuned.read_text())
    assert found["laptop"] == other["laptop"]
    rate = found["smoke"]["sgd"]["fields"]["rule.learning_rate"]
    assert found["smoke"]["sgd"]["trials"] == 2
    assert METHODS["sgd"].config("smoke").rule.learning_rate == rate != untuned
    assert METHODS["gpu"].config("smoke").rule.learning_rate == 0.3  # not tuned there: laptop's
    said = words_of_tuning("smoke", ["sgd", "gpu", "downpour"])
    assert said.startswith("sgd: tuned by 2 trials")
    assert "gpu: tuned by 2 trials for final hold-out accuracy, at size laptop" in said
    assert said.endswith("downpour: not tuned")
    assert tuning.tune("smoke", ["sgd"], tmp_path / "sweeps", 2) is None  # is there already
    assert json.loads(tuned.read_text()) == found


def test_a_run_that_fails_is_named(tmp_path):
    config = load_config("configs/quickstart.py:smoke")
    config.options.shards = 10_000
    with pytest.raises(ValueError, match=r"mine: .*shards"):
        many.run_all({"mine": config}, tmp_path, 1, "one")


def test_interrupted_it_goes_on(smoke, tmp_path):
    """SIGINT once the first run lies there: exit code 130, and that run is kept as it is.

    All but three are there before, as the fixture left them.
    """
    runs = tmp_path / "runs"
    shutil.copytree(smoke / "runs", runs)
    missing = [path for name in ("sgd", "gpu", "sandblaster") for path in runs.glob(f"{name}_*")]
    for path in missing:
        shutil.rmtree(path)
    command = [
        sys.executable, "-m", "experiments.figure4", "--size=smoke", "--seeds=1", "--jobs=1",
        f"--runs={runs}", f"--workdir={tmp_path / 'out'}",
    ]  # fmt: skip
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + LIMIT_S
    while not (found := [p for path in missing for p in path.glob("seed_1/summary.json")]):
        assert begun.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun.send_signal(signal.SIGINT)
    _, said = begun.communicate()
    assert begun.returncode == 130, said
    assert "Traceback" not in said
    before = {path: path.stat().st_mtime_ns for path in found}
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in found} == before
    for method in METHODS:
        assert list(runs.glob(f"{method}_[0-9]*/seed_1/summary.json")), method


@pytest.mark.parametrize("size", SIZES)
def test_every_config_can_be_built(size):
    for (curve, replicas), (_, config) in configs(size).items():
        build.require_sound(config)
        assert config.options.replicas == replicas
        cluster = build.cluster(config)
        if curve in ("gpu", "sgd"):
            continue
        # all of the paper's parameters, in four pieces, each over a card of its own
        shard, machine = cluster.machine_of("shard/0"), cluster.machine
        assert (shard.cards, machine.cards) == (replicas, SHARDS)
        piece_s = BYTES / SHARDS / machine.bandwidth_bytes_per_s
        assert piece_s == pytest.approx(transfer_s(replicas))
        read_s = (
            BYTES / SHARDS / cluster.memory_bandwidth_bytes_per_s
        )  # by all of a shard's machines
        assert read_s == pytest.approx(BYTES / (5e9 * servers(replicas)))


NETWORK = {"cluster.size_scale": 0.1}
SMALL = {"batch_size": 0.1}
LONG = {"until_s": 10.0, "evaluations": 2.0}


@pytest.mark.parametrize(("size", "times"), [
    ("laptop_fast_network", NETWORK), ("laptop_small_batches", SMALL),
    ("laptop_fast_small", NETWORK | SMALL), ("laptop_long", LONG),
])  # fmt: skip
def test_an_assumption_changes_what_it_says_and_what_is_tuned(size, times):
    method = METHODS["downpour_adagrad"]
    tuned = load_space(f"configs/spaces/figure4/{method.space}.py").space
    laptop, changed = (flat(method.config(name).to_dict()) for name in ("laptop", size))
    differ = {name for name in laptop if laptop[name] != changed[name]} - set(tuned)
    assert laptop.keys() == changed.keys()
    assert {name: changed[name] / laptop[name] for name in differ} == pytest.approx(times)


def test_a_wider_server_would_not_be_quicker():
    """Of 2,000 replicas; of 20 it would be, but is no wider than they are."""
    best = servers(2_000)
    card, message_s = GOOGLE_2012.machine.bandwidth_bytes_per_s, GOOGLE_2012.message_s

    def fetch_s(width):
        return 2_000 * BYTES / (width * card) + width / MACHINES * message_s

    assert fetch_s(best) == pytest.approx(transfer_s(2_000))
    assert fetch_s(best) < min(fetch_s(0.9 * best), fetch_s(1.1 * best))
    assert servers(20) == 160


def test_the_clock_is_that_of_the_compiled_programs():
    """In a process of its own, for its eight devices."""
    program = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "from tests.experiments.test_figure4 import _times\n"
        "_times()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=os.environ | {"XLA_FLAGS": FAST, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    eight, jitter, gpu = json.loads(done.stdout)
    for examples, time_s in eight.items():
        assert step_s(int(examples)) == pytest.approx(time_s, rel=0.02)
    assert pytest.approx(jitter, rel=0.3) == JITTER
    assert pytest.approx(gpu, rel=0.01) == GPU_STEP_S


def _times():
    eight = {n: predicted(compiled(PAPER, 8, n), GOOGLE_2012).upper_s for n in (25, 50, 100, 500)}
    step, random = phased_step(compiled(PAPER, 8, 100)), np.random.default_rng(0)
    drawn = [step.draw_s(GOOGLE_2012.machine, GOOGLE_2012, random) for _ in range(2_000)]
    board = dataclasses.replace(GOOGLE_2012, machine=GPU_2012)
    jitter = float(np.std(np.log(drawn)))
    print(json.dumps([eight, jitter, predicted(compiled(PAPER, 1, 100), board).upper_s]))


def made_up(replicas, accuracies, rule):
    """A run with an evaluation each second."""
    rows = [
        {"time_s": float(t), "train_accuracy": a, "test_accuracy": a}
        for t, a in enumerate(accuracies)
    ]
    config = {"options": {"replicas": replicas}, "rule": rule, "seed": 1}
    nothing = Spans((), (), *[()] * 4)
    return Run("", Path(), "virtual", "finished", config, {}, rows, [], {}, nothing)


SGD, FIXED, ADAGRAD = {"name": "sgd"}, {"learning_rate": 0.1}, {"gamma": 1.0}


def test_verdicts_follow_the_seeds():
    """SGD ends at 0.4 after 4 s; of two seeds Downpour is there sooner in one only."""
    slow = made_up(1, [0, 0.1, 0.2, 0.3, 0.4], SGD)
    quick = made_up(20, [0, 0.4, 0.5, 0.5, 0.5], FIXED)
    never = made_up(20, [0, 0.1, 0.1, 0.1, 0.1], FIXED)
    runs = {
        "sgd": [slow, slow],
        "gpu": [slow, slow],
        "downpour": [quick, never],
        "downpour_adagrad": [made_up(20, [0, 0.2, 0.4, 0.4, 0.4], ADAGRAD)] * 2,
        "downpour_adagrad_200": [made_up(200, [0, 0.5, 0.5, 0.5, 0.5], ADAGRAD)] * 2,
        "sandblaster": [never, never],
    }
    verdicts = {claim.paper.split(" (taken")[0]: claim.verdict for claim in claims(runs)}
    assert verdicts["Downpour [20] is clearly faster than SGD [1]"] == "holds in part"
    assert verdicts["Sandblaster [2000] is considerably faster again"] == "does not hold here"
    assert verdicts["Downpour + Adagrad [200] is the fastest of all"] == "holds"
    assert verdicts["with enough CPUs, Sandblaster beats the GPU"] == "does not hold here"
    three = next(v for sentence, v in verdicts.items() if "our aim" in sentence)
    assert three == "holds in part"  # it is 2 times


def test_nobody_knows_how_much_sooner_than_never():
    """More than 2 times is at least 1.5, and may not be at most 2.5."""
    never = made_up(20, [0, 0.1, 0.1, 0.1, 0.1], FIXED)
    quick = made_up(20, [0, 0.2, 0.4, 0.4, 0.4], ADAGRAD)
    sgd = made_up(1, [0, 0.1, 0.2, 0.3, 0.4], SGD)
    modestly = next(
        claim for claim in claims({"sgd": [sgd], "downpour": [never], "downpour_adagrad": [quick]})
        if "modestly" in claim.paper
    )  # fmt: skip
    assert modestly.ours.endswith("; ratio in each seed: more than 2")
    assert modestly.verdict == "holds in part"
    clearly = Sooner("", "", "", 1.5)
    assert clearly.agrees(2.0, more=True) == clearly.agrees(2.0, more=False) == 1.0


def test_a_target_is_that_of_the_seed():
    """A seed in which SGD ends low is no easy win: the other method has its own target there."""
    low, high = made_up(1, [0, 0.1, 0.3], SGD), made_up(1, [0, 0.3, 0.5], SGD)
    early = made_up(20, [0, 0.31, 0.31], ADAGRAD)
    aim = next(
        claim for claim in claims({"sgd": [low, high], "downpour_adagrad": [early, early]})
        if "our aim" in claim.paper
    )  # fmt: skip
    assert aim.verdict == "holds in part"  # 2.07 times, and never
    assert aim.ours.endswith("2.1, not reached")


def test_a_run_that_ends_early_keeps_its_last_accuracy():
    short = made_up(2_000, [0, 0.2], SGD)
    whole = made_up(2_000, [0, 0.1, 0.3], SGD)
    drawn = figure({"sgd": [whole, whole, whole], "sandblaster": [short, whole, whole]}, "")
    (line,) = [
        line for line in drawn.axes[1].lines if line.get_label() == "Sandblaster L-BFGS [2000]"
    ]
    assert list(line.get_ydata()) == pytest.approx([0, 10, 30])
    assert list(line.get_xdata()) == [0, 1, 2]


def test_budgets_and_deadlines():
    def point(curve, replicas, *times_s):
        return Point(curve, replicas, METHODS[curve].machines(replicas), times_s)

    points = [
        point("downpour", 5, 50.0, math.inf, math.inf),
        point("downpour", 10, math.inf, math.inf, math.inf),
        point("downpour_adagrad", 5, 30.0, 31.0, 32.0),
        point("downpour_adagrad", 10, 20.0, 21.0, 22.0),
        point("sandblaster", 94, 40.0, 41.0, 42.0),
        point("sandblaster", 200, 10.0, 11.0, 12.0),
        point("gpu", 1, 1.0, 1.0, 1.0),
    ]
    best, misses, extreme = claims_of_points(points, 60.0)
    assert best.verdict == "holds in part"  # all budgets but the largest
    assert misses.verdict == "holds"
    assert misses.ours.startswith("5 of 6 runs")
    assert extreme.verdict == "holds in part"  # with the most cores, not with 30,000


@pytest.mark.parametrize("main", [figure4.main, figure5.main])
def test_mistakes_are_named(main):
    with pytest.raises(ValueError, match="unknown --size=smok; nearest: 'smoke'"):
        main(["--size=smok"])
    with pytest.raises(ValueError, match="--seeds=0 must be"):
        main(["--seeds=0"])
    with pytest.raises(ValueError, match="of its own"):  # else they overwrite the figure's
        main(["--config.until_s=1"])
    with pytest.raises(ValueError, match="the clock depends on it"):
        main(["--config.batch_size=1", "--workdir=x", "--runs=y"])
    assert main(["--help"]) == 0


def test_what_is_changed_is_changed_in_every_run(tmp_path):
    given = ["--size=smoke", "--seeds=1", f"--runs={tmp_path}/runs", f"--workdir={tmp_path}/out"]
    assert figure4.main([*given, "--config.until_s=1", "--config.evaluate_examples=50"]) == 0
    assert max(float(row["time_s"]) for row in table(tmp_path / "out/figure4.csv")) == 1.0
    assert "until_s=1" in (tmp_path / "out/claims.md").read_text()


def test_the_page_in_results_has_every_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = [Claim("a sentence", "a measure", "holds")]
    for name in ("figure3", "figure4"):
        folder = Path("results") / name
        folder.mkdir(parents=True)
        figures.leave(
            name, folder.resolve(), rows=[{"x": 1.0}], picture=Figure(), claims=said,
            measured="here", notes="nothing",
        )  # fmt: skip
    page = Path("results/README.md").read_text()
    assert page.index("## Figure 3") < page.index("## Figure 4")
    assert page.count("| a sentence | a measure | holds |") == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    figures.leave(
        "figure5", elsewhere, rows=[{"x": 1.0}], picture=Figure(), claims=said, measured="here",
        notes="nothing",
    )  # fmt: skip
    assert "Figure 5" not in Path("results/README.md").read_text()
