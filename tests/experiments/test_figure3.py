"""Figure 3 at its smallest, end to end, and the fit of the cluster of 2012."""

import csv
import json
import os
import subprocess
import sys

import pytest

from dbjax.costs.program import Collective, Costs, Memory, ProgramPhase
from dbjax.runtime.presets import GOOGLE_2012
from experiments.figure3 import __main__ as figure3
from experiments.figure3.calibration import calibrated, root, speedup
from experiments.figure3.results import claims
from tests.processes import FAST


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The files of the command, which needs a process of its own for its 81 devices."""
    workdir = tmp_path_factory.mktemp("figure3")
    command = [sys.executable, "-m", "experiments.figure3", "--size=smoke", f"--workdir={workdir}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": FAST}
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_what_it_writes(smoke):
    workdir, shown = smoke
    assert "figure3.png" in shown
    assert (workdir / "figure3.png").stat().st_size > 20_000
    rows = list(csv.DictReader((workdir / "figure3.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 5  # clusters, networks, numbers of machines
    assert "| fitted |" in (workdir / "claims.md").read_text()
    for row in rows:
        # padding and halos: a little more than the ideal share on each machine
        assert 1 <= float(row["flops_over_ideal"]) < 1.3
        assert float(row["speedup"]) <= 1.001 * float(row["speedup_if_overlapped"])
        assert (row["machines"] == "1") == (float(row["sent_bytes_per_machine"]) == 0)


def test_the_preset_is_what_the_command_fits(smoke):
    fitted = json.loads((smoke[0] / "cluster.json").read_text())["fitted"]
    assert GOOGLE_2012.machine.flops_per_s == pytest.approx(fitted["flops_per_s"], rel=0.01)
    assert GOOGLE_2012.message_s == pytest.approx(fitted["message_s"], rel=0.01)


def network(machines, flops=1e10, size=1e6):
    """A layer cut by units, as the fit sees it."""
    gathered = Collective("all-gather", int(size / machines), int(size), machines)
    phase = ProgramPhase(flops / machines, 0.0, (gathered,) * 4)
    return Costs(machines, flops / machines, 0.0, (phase,), Memory(0, 0, 0, 0))


def test_the_fit_puts_the_best_where_the_paper_has_it():
    costs = {n: network(n) for n in (1, 2, 4, 8, 16, 32)}
    cluster = calibrated(costs, GOOGLE_2012)
    curve = {n: speedup(costs, n, cluster) for n in costs}
    assert curve[8] == pytest.approx(2.2)
    assert max(curve, key=curve.get) == 8
    assert curve[4] == pytest.approx(curve[16])


def test_no_fit_is_an_error():
    costs = {n: network(n, size=0) for n in (1, 4, 8, 16)}
    costs[8] = costs[1]  # eight machines are never better than one
    with pytest.raises(ValueError, match=r"gives 2\.2 times at 8 machines"):
        calibrated(costs, GOOGLE_2012)
    assert root(lambda x: x - 3, 0, 10, "x") == pytest.approx(3)


def test_a_claim_can_fail():
    from experiments.figure3.networks import SPEECH, VISION_1700M, Point

    counts = (1, 8, 16, 81)
    points = [Point(SPEECH, 42, n, network(n)) for n in counts]
    points += [Point(VISION_1700M, 1700, n, network(n)) for n in counts]
    said = claims(points, GOOGLE_2012, {VISION_1700M: [1.0, 2.0]})
    assert {c.verdict for c in said} == {"fitted", "holds", "does not hold here"}
    assert said[-1].paper.endswith("more than 12 times faster on 81 machines")
    assert said[-1].verdict == "does not hold here"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size=smok"], "unknown --size=smok; nearest: 'smoke'"),
        (["--batch-size=0"], "--batch-size=0 must be an integer of at least 1"),
        (["--siez=full"], "no flag --siez"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        figure3.main(arguments)
