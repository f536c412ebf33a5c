"""The numbers of a summary, by hand."""

import collections
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.monitoring.metrics import (
    lost_pushes,
    params_sha256,
    progress,
    staleness,
    staleness_histogram,
    summarise,
    train_loss,
)
from dbjax.parameter_server import Report, StalenessAccounting
from dbjax.parameter_server.shard import ShardCounts
from dbjax.runtime.trace import Trace


def report(version=0, histogram=(), earlier=(), pushed=(), **counts):
    staleness = StalenessAccounting(
        histogram=collections.Counter(dict(histogram)), earlier=collections.Counter(dict(earlier))
    )
    return Report(version, ShardCounts(**counts), staleness, dict(pushed))


# 100 pushes: 49 of 0 updates, 45 of 2, 4 of 7, 2 of 30
REPORTS = [
    report(histogram={0: 40, 2: 20, 30: 2}, earlier={0: 9}),  # of before it was taken up
    report(histogram={2: 25, 7: 4}),
]


def test_the_histogram_is_of_all_shards_and_of_before_a_resume():
    assert staleness_histogram(REPORTS) == {0: 49, 2: 45, 7: 4, 30: 2}
    assert list(staleness_histogram(REPORTS)) == [0, 2, 7, 30]


def test_staleness_by_hand():
    """Sorted, the 50th of 100 is the first of the 2s, the 95th of the 7s, the 99th a 30."""
    found = staleness(REPORTS, 1.5)
    assert found == {
        "mean": (45 * 2 + 4 * 7 + 2 * 30) / 100, "p50": 2, "p95": 7, "max": 30,
        "predicted_mean": 1.5,
    }  # fmt: skip
    odd = staleness([report(histogram={1: 3, 4: 2})], None)
    assert (odd["p50"], odd["p95"], odd["max"]) == (1, 4, 4)


def test_staleness_of_no_push():
    assert staleness([report()], None) == {
        "mean": 0.0, "p50": 0, "p95": 0, "max": 0, "predicted_mean": None
    }  # fmt: skip


def test_progress_is_that_of_the_shard_that_is_behind_and_of_the_bytes_of_all():
    found = progress([
        report(13, applied=9, examples=72, bytes_fetched=100, bytes_pushed=10),
        report(12, applied=11, examples=70, bytes_fetched=0, bytes_pushed=0),
        report(15, applied=14, examples=64, bytes_fetched=7, bytes_pushed=3),
    ])  # fmt: skip
    assert found == {
        "updates": 9, "examples": 64, "version_skew_updates": 3, "bytes_fetched": 107,
        "bytes_pushed": 13,
    }  # fmt: skip


def test_the_training_loss_is_the_mean_of_the_last_ones():
    rows = [{"loss": 8.0}, {"loss": 1.0}, {"event": "died"}, {"loss": jnp.float32(4.0)}]
    assert train_loss(rows, 2) == 2.5
    assert train_loss(rows, 100) == 13.0 / 3
    assert math.isnan(train_loss([{"event": "died"}], 5))


def test_pushes_are_lost_with_later_ones_after_them_or_without():
    reports = [
        report(pushed={"replica/0": 5, "replica/1": 3}, lost=2),
        report(pushed={"replica/0": 7}),
    ]
    acknowledged = {"replica/0": 7, "replica/1": 3}
    assert lost_pushes(reports, acknowledged) == 2 + (7 - 5) + 3
    assert lost_pushes(reports, {"replica/0": 1}) == 2  # more than was answered is no loss


def program(**changes):
    given = {
        "server": types.SimpleNamespace(replica_devices=lambda: None),
        "predicted_staleness_updates": 1.0,
        "recent_losses": 2,
        "summarise": lambda rows: {"own": len(rows)},
        "acknowledged": lambda rows: {"replica/0": sum("loss" in row for row in rows)},
    }
    return types.SimpleNamespace(**given | changes)


def trace():
    made = Trace()
    for node, time_s, values in (
        ("evaluator", 0.0, {"version_skew_updates": 0, "updates": 0}),
        ("replica/0", 1.0, {"step": 0, "loss": 4.0}),
        ("shard/0", 1.5, {"event": "died"}),
        ("evaluator", 2.0, {"version_skew_updates": 5, "updates": 3}),
        ("shard/0", 2.5, {"event": "returned"}),
        ("replica/0", 3.0, {"step": 1, "loss": 2.0}),
        ("replica/0", 3.5, {"step": 2, "loss": 1.0}),
        ("replica/1", 3.6, {"event": "died"}),
        ("evaluator", 4.0, {"version_skew_updates": 2, "updates": 9}),
    ):
        made.record(node, time_s, values)
    return made


def test_a_summary_by_hand():
    reports = [
        report(3, {0: 2, 1: 1}, refused=2, repeated=1, pushed={"replica/0": 2}),
        report(3, {1: 3}, repeated=4, pushed={"replica/0": 3}),
    ]
    found = summarise(trace(), reports, program())
    assert found["updates"] == 9  # of the last evaluation
    assert found["train_loss"] == 1.5
    assert found["version_skew_updates"] == {"final": 2, "max": 5}
    assert found["staleness_updates"]["mean"] == 4 / 6
    assert (found["refused_pushes"], found["repeated_pushes"]) == (2, 5)
    assert (found["deaths"], found["returns"]) == (2, 1)
    assert found["lost_pushes"] == 1  # of three that were answered the first shard has two
    assert found["own"] == 9
    assert "replica_devices" not in found
    sharding = program(server=types.SimpleNamespace(replica_devices=lambda: {"count": 4}))
    assert summarise(trace(), reports, sharding)["replica_devices"] == {"count": 4}


def test_what_was_acknowledged_before_a_run_was_taken_up_is_not_asked_for():
    reports = [report(pushed={"replica/0": 2})]
    assert summarise(trace(), reports, program())["lost_pushes"] == 1
    assert summarise(trace(), reports, program(), resumed_rows=2)["lost_pushes"] == 0


def test_a_digest_is_of_paths_types_shapes_and_values():
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(())}
    others = (
        {"c": params["a"], "b": params["b"]},
        params | {"a": params["a"].reshape(3, 2)},
        params | {"a": params["a"].astype(jnp.int32)},
        params | {"a": params["a"].at[1, 2].set(5.5)},
        params | {"b": -params["b"]},  # minus zero
    )
    digests = {params_sha256(one) for one in (params, *others)}
    assert len(digests) == 6
    as_numpy = {name: np.asarray(value) for name, value in params.items()}
    assert params_sha256(as_numpy) == params_sha256(params)


def test_an_evaluation_by_hand_counts_the_metrics_as_floats():
    from dbjax.monitoring.evaluator import evaluation

    task = types.SimpleNamespace(
        evaluate=lambda params: {"sum": jnp.sum(params)}, most_frequent=None
    )
    placed = program(join=lambda slices: slices[0])
    fetched = types.SimpleNamespace(slices=(jnp.arange(4.0),))
    found = evaluation(placed, task, trace(), fetched, [report(7, applied=6)])
    assert (found["updates"], found["train_loss"], found["sum"]) == (6, 1.5, 6.0)
    assert type(found["sum"]) is float
    blind = types.SimpleNamespace(evaluate=None, most_frequent=None)
    assert "sum" not in evaluation(placed, blind, trace(), fetched, [report()])


@pytest.mark.parametrize(
    ("last_s", "every_s", "first"),
    [
        (None, 0.5, 0),
        (0.0, 0.5, 1),
        (1.0, 0.5, 3),
        (1.2, 0.5, 3),
        (0.3, 0.1, 4),
        (9.0, math.inf, 1),
    ],
)
def test_evaluations_go_on_with_the_next_that_is_due(last_s, every_s, first):
    """Also at 0.3 of every 0.1, which floating-point division says is the second."""
    from dbjax.monitoring.evaluator import schedule

    rows = [] if last_s is None else [{"node": "evaluator", "time_s": last_s}]
    found = schedule(every_s, 10.0, [*rows, {"node": "replica/0", "time_s": 9.0}])
    assert (found.first, found.every_s, found.until_s) == (first, every_s, 10.0)
