"""Sub-sampled batches with overlap."""

import pytest

import dbjax
from dbjax.algorithms.sandblaster.batches import make_batches
from dbjax.optim import ConjugateGradients, GradientDescent, Stops, Wolfe
from tests.algorithms.logistic import CLUSTERS, LABELS, UNEVEN, X, loss, one_process, run, task


def test_samples_overlap_and_go_around():
    found = make_batches(10, 0.6, 0.34)
    assert found.parts(0) == {"before": (0, 1), "only": (2, 3), "after": (4, 5)}
    assert found.parts(1) == {"before": (4, 5), "only": (6, 7), "after": (8, 9)}
    assert found.parts(2)["before"] == found.parts(1)["after"]
    assert make_batches(10, 1.0, 0.25).parts(7) == {"only": tuple(range(10))}
    with pytest.raises(ValueError, match=r"sandblaster\.sample"):
        make_batches(4, 0.5, 0.2)


@pytest.mark.parametrize("order", ["free", "fixed"])
def test_fresh_samples_with_overlap_come_close_to_the_minimum(order, float64):
    full = one_process(steps=40)
    best = float(loss(full, (X, LABELS)))
    start = float(loss(task().params, (X, LABELS)))
    result = run(UNEVEN, sample=0.5, overlap=0.25, steps=40, order=order)
    reached = float(loss(result.params, (X, LABELS)))
    assert reached - best < 0.1 * (start - best)
    assert result.summary["examples"] < 60 * 96  # half of the data for each evaluation


def test_an_uphill_step_over_another_sample_is_no_convergence(float64):
    result = run(sample=0.25, overlap=0.25, steps=30, stops=Stops())
    assert result.summary["stopped_because"] == "30 iterations"


@pytest.mark.parametrize(
    "method",
    [
        ConjugateGradients(first_step=1e3, wolfe=Wolfe(curvature=0.1, max_trials=2)),
        GradientDescent(first_step=1e4, wolfe=Wolfe(max_trials=1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_search_that_fails_over_a_sample_takes_a_shorter_step(method, float64):
    trace = dbjax.Trace()
    run(sample=0.25, overlap=0.25, steps=40, method=method, trace=trace)
    lengths = [row["step_length"] for row in trace.rows if row.get("step", 0) > 0]
    assert all(length > 0 for length in lengths)
    losses = [row["loss"] for row in trace.rows if "step" in row]
    assert losses[-1] < 0.1 * max(losses) or losses[-1] < losses[0]


def test_samples_do_not_depend_on_the_cluster():
    given = {"sample": 0.5, "overlap": 0.25, "order": "fixed", "steps": 6}
    digests = {run(cluster, **given).summary["params_sha256"] for cluster in CLUSTERS.values()}
    assert len(digests) == 1
