"""A network cut over devices computes what the whole one does, and sends no more than it must."""

import pytest

from tests.model_parallel.agreement_runs import CASES, DEVICES, MISTAKES
from tests.processes import printed

# Sums over other orders differ by a few roundings of 6e-8; 20 steps do not make more of them.
TOLERANCE = 1e-5
everywhere = pytest.mark.parametrize("devices", DEVICES)


@pytest.fixture(scope="module")
def runs():
    return printed("tests.model_parallel.agreement_runs")


def agrees(run):
    assert run["loss"] < TOLERANCE
    assert run["gradient"] < TOLERANCE
    assert run["trajectory"] < TOLERANCE


@everywhere
@pytest.mark.parametrize("case", CASES)
def test_partitioned_is_whole(runs, case, devices):
    """Losses and parameters of 20 steps, and the gradient: the norm of the difference, relative."""
    run = runs[f"{case} on {devices}"]
    agrees(run)
    assert run["moved"] > 1000 * TOLERANCE  # there was something to agree on


@everywhere
@pytest.mark.parametrize("case", CASES)
def test_padding_stays_zero(runs, case, devices):
    assert runs[f"{case} on {devices}"]["padding"] == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_cut_does_not_agree(runs, mistake):
    with pytest.raises(AssertionError):
        agrees(runs[mistake])


@pytest.mark.parametrize("mistake", ["units of padding count", "classes of padding count"])
def test_padding_that_counts_is_seen(runs, mistake):
    assert runs[mistake]["padding"] > 0


def counted(run, dims=None):
    """How many of each kind; of results of so many dimensions."""
    found = {}
    for each, count in run["collectives"].items():
        kind, shape = each.split(" ")
        if dims is None or (shape.count(",") + 1 if shape != "f32[]" else 0) == dims:
            found[kind] = found.get(kind, 0) + count
    return found


@everywhere
def test_cutting_alternately_halves_the_collectives_of_units(runs, devices):
    """Those of [batch, units]; the loss sends a few numbers an example."""
    units, alternating = (
        counted(runs[f"speech, {how} on {devices}"], dims=2) for how in ("units", "alternating")
    )
    assert units == {"all-gather": 4, "reduce-scatter": 4}
    assert alternating == {"all-reduce": 4}
    for how in ("units", "alternating"):
        run = runs[f"speech, {how} on {devices}"]
        assert counted(run, dims=1) == {"all-reduce": 3}  # largest, total, at the label
        assert counted(run, dims=0) == {"all-reduce": 10}  # squared parameters


@everywhere
def test_logits_that_are_whole_need_no_collective_in_the_loss(runs, devices):
    assert runs[f"mlp, alternating on {devices}"]["collectives"] == {"all-reduce f32[6,11]": 1}


@everywhere
@pytest.mark.parametrize("case", ["vision", "vision of digits"])
def test_tiles_send_halos_and_features_and_one_number(runs, case, devices):
    found = counted(runs[f"{case} on {devices}"])
    axes = {1: 0, 2: 1}.get(devices, 2)  # of the grid, along which it is cut
    halos = found.pop("collective-permute", 0)
    assert (halos > 0) == (axes > 0)
    expected = {"all-gather": axes, "reduce-scatter": axes} if axes else {}
    assert found == {"all-reduce": 1} | expected
    assert runs[f"{case} on {devices}"]["collectives"]["all-reduce f32[]"] == 1
