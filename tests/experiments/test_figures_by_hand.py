"""The numbers behind Figures 4 and 5, of runs that are made up: targets, times, medians."""

import math
import statistics

import pytest

from experiments.figure4.picture import figure as picture4
from experiments.figure4.results import by_time, order, rows, seconds, stated, times
from experiments.figure5 import __main__ as figure5
from experiments.figure5.picture import figure as picture5
from experiments.figure5.points import Point, points
from experiments.figure5.points import rows as point_rows
from experiments.figure5.results import within
from tests.experiments.test_figure4 import ADAGRAD, FIXED, SGD, made_up

# Of three seeds one is far off, so that a mean is not a median.
SGD_RUNS = [made_up(1, [0, 0.1, end], SGD) for end in (0.3, 0.6, 0.3)]
DOWNPOUR = [
    made_up(20, [0, 0.3, 0.5], FIXED),
    made_up(20, [0, 0.5, 0.7], FIXED),
    made_up(20, [0, 0.1, 0.2], FIXED),
]


def test_the_target_of_figure_5_is_the_mean_of_what_sgd_has_at_the_end():
    assert stated({"sgd": SGD_RUNS, "downpour": DOWNPOUR}) == pytest.approx(0.4)


def test_points_of_figure_5_reach_the_target_when_each_seed_does():
    """Between the evaluations around it: 0.4 lies half way from 0.3 to 0.5, and 4/5 to 0.5."""
    runs = {("gpu", 1): SGD_RUNS, ("sgd", 1): SGD_RUNS, ("downpour", 20): DOWNPOUR}
    gpu, found = points(runs, 0.4)  # SGD [1] is what others are held against
    assert (gpu.curve, gpu.machines) == ("gpu", 1)
    assert gpu.times_s == (math.inf, pytest.approx(1.6), math.inf)
    assert (found.curve, found.replicas, found.machines) == ("downpour", 20, 20 * 8 + 160)
    assert found.cores == 20 * found.machines
    assert found.times_s == pytest.approx((1.5, 0.8, math.inf))
    assert found.time_s == pytest.approx(1.5)  # the median: the mean would be infinite
    table = point_rows([found], 0.4, 9.0, 1234)
    assert [row["seed"] for row in table] == [1, 2, 3]
    assert [row["time_s"] for row in table] == pytest.approx([1.5, 0.8, math.inf])
    assert {row["hold_out_accuracy"] for row in table} == {0.4}
    assert {(row["deadline_s"], row["computed_parameters"]) for row in table} == {(9.0, 1234)}


def test_figure_5_is_drawn_to_the_accuracy_of_sgd(monkeypatch, tmp_path):
    """The command with runs that are made up: everything is held against 40 %."""
    said = {}

    def runs_of(configs, chosen, label):
        return {name: SGD_RUNS if name[0] == "sgd" else DOWNPOUR for name in configs}

    def write(found, accuracy, config, chosen):
        said.update(points=found, accuracy=accuracy, deadline_s=config.until_s)

    monkeypatch.setattr(figure5, "run_seeds", runs_of)
    monkeypatch.setattr(figure5, "write", write)
    given = ["--size=smoke", f"--workdir={tmp_path}/out", f"--runs={tmp_path}/runs"]
    assert figure5.main(given) == 0
    assert said["accuracy"] == pytest.approx(0.4)
    assert len(said["points"]) == 13
    assert all(p.times_s == pytest.approx((1.5, 0.8, math.inf)) for p in said["points"])


def test_what_is_soonest_with_so_many_machines():
    slow, quick = (
        Point("downpour", 5, 80, (30.0, math.inf)),
        Point("downpour", 20, 320, (10.0, math.inf)),
    )
    assert within([slow, quick], 320, 0) is quick
    assert within([slow, quick], 319, 0) is slow
    assert within([slow, quick], 320, 1) is None


def test_markers_of_figure_5_are_medians_and_bars_reach_from_the_lowest_to_the_highest():
    found = [Point("downpour", 5, 80, (1.0, 2.0, 9.0)), Point("downpour", 20, 320, (3.0, 4.0, 8.0))]
    axes = picture5(found, 0.4, 20.0, "").axes[0]
    curve = next(line for line in axes.lines if line.get_label() == "Downpour")
    assert list(curve.get_xdata()) == [80, 320]
    assert list(curve.get_ydata()) == [2.0, 4.0]
    bars = [tuple(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == [80, 80]]
    assert bars == [(1.0, 9.0)]


def test_lines_of_figure_4_are_medians_over_seeds_and_bands_hold_all():
    drawn = picture4({"sgd": SGD_RUNS, "downpour": DOWNPOUR}, "")
    (line,) = (line for line in drawn.axes[1].lines if line.get_label() == "Downpour [20]")
    assert list(line.get_ydata()) == pytest.approx([0, 30, 50])
    assert statistics.fmean((50, 70, 20)) != pytest.approx(50)
    band = drawn.axes[1].collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0, 70))


def test_times_and_the_order_are_those_of_the_seeds_own_targets():
    """SGD of the seeds ends at 0.3, 0.6 and 0.3: Downpour is there at 1, 1.5, never."""
    found = times({"sgd": SGD_RUNS, "downpour": DOWNPOUR})
    assert found["downpour"] == pytest.approx([1.0, 1.5, math.inf])
    assert found["sgd"] == pytest.approx([2.0, 2.0, 2.0])
    assert by_time(found) == ["downpour", "sgd"]  # medians 1.5 and 2: a mean would be infinite
    assert seconds(found["downpour"]) == "1.5 s (1.0 to never)"
    assert seconds([4.0, 1.0, 2.0]) == "2.0 s (1.0 to 4.0)"
    assert seconds([math.inf, math.inf, 3.0]) == "never (once 3.0 s)"
    said = order({"sgd": SGD_RUNS, "downpour": DOWNPOUR})
    assert said.endswith("Downpour [20] 50.0%, SGD [1] 30.0%.")


def test_rows_of_figure_4_are_those_of_each_run():
    run = made_up(20, [0.1, 0.2], ADAGRAD)
    run.config.update(seed=7, model={"width": 16, "depth": 4}, data={"num_states": 5})
    for row in run.rows:
        row.update(updates=3, examples=96, train_accuracy=0.9)
    found = rows({"downpour_adagrad": [run]})
    assert [(row["seed"], row["time_s"], row["test_accuracy"]) for row in found] == [
        (7, 0.0, 0.1), (7, 1.0, 0.2)
    ]  # fmt: skip
    assert {(row["method"], row["machines"]) for row in found} == {("Downpour + Adagrad [20]", 320)}
    assert {row["train_accuracy"] for row in found} == {0.9}
    # 440 inputs, hidden layers of 16, 5 states
    width, depth = 16, 4
    size = 441 * width + (depth - 1) * (width + 1) * width + (width + 1) * 5
    assert {row["computed_parameters"] for row in found} == {size}
