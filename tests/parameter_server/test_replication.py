"""Primary and backup through outages of the network: cases that the simulation found.

See docs/decisions/simulation-testing.md.
"""

import dataclasses

import optax
import pytest

import dbjax
from dbjax import Failure, Outage
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Checkpoints
from tests.test_conformance import TASK

DOWNPOUR = downpour.Config(optax.sgd(0.03), replicas=3, shards=1, shard_backups=1, steps=20)
SANDBLASTER = sandblaster.Config(replicas=3, shards=2, shard_backups=1, steps=4)


def run(failures=(), outages=(), config=DOWNPOUR, *, latency_s=1e-3, **kwargs):
    cluster = dbjax.Cluster(
        compute_s=0.1, latency_s=latency_s, failures=failures, outages=outages
    )  # fmt: skip
    return dbjax.run(TASK, config, cluster=cluster, **kwargs).summary


@pytest.mark.parametrize("latency_s", [0.0, 1e-3])
def test_a_backup_that_is_cut_off_from_a_dead_head_waits_to_be_told(latency_s):
    """Whoever calls it is not sent to and fro meanwhile: without latency that took for ever."""
    head = (Failure("shard/0", 1.03, 9.0),)
    sharding = (Outage("shard/0", "shard/0/backup", 1.0, 1.5),)
    summary = run(head, sharding, latency_s=latency_s)
    assert (summary["updates"], summary["lost_pushes"]) == (60, 0)
    assert 2.4 < summary["time_s"] < 3.0


def test_two_copies_that_return_to_a_cut_agree_who_leads():
    """What a former life of one had asked must not make the other lead, too."""
    failures = (
        Failure("shard/0/backup", 1.04, 1.0402), Failure("shard/0", 1.1, 1.4),
        Failure("shard/0/backup", 1.2, 1.5),
    )  # fmt: skip
    sharding = (Outage("shard/0", "shard/0/backup", 1.0401, 1.8),)
    assert run(failures, sharding, latency_s=0.02)["time_s"] < 9.0


@pytest.mark.parametrize("latency_s", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("at_s", [0.55, 0.93, 1.2])
def test_a_cut_alone_loses_nothing(at_s, latency_s):
    sharding = (Outage("shard/0", "*", at_s, at_s + 0.7),)
    assert run((), sharding, latency_s=latency_s)["updates"] == 60


def test_a_run_that_ends_while_the_head_is_dead_has_what_the_backup_knows():
    before, dead = run(until_s=1.9), run((Failure("shard/0", 1.99, 9.0),), until_s=2.0)
    assert dead["updates"] >= before["updates"] > 0


def test_a_run_that_ends_while_both_are_dead_has_what_they_would_come_back_with():
    both = (Failure("shard/0", 1.0, 9.0), Failure("shard/0/backup", 1.5, 9.0))
    assert run(both, until_s=2.0)["updates"] == 0


def test_a_run_that_ends_before_the_head_is_given_its_state_has_it_from_the_backup():
    blank = (Failure("shard/0", 1.9, 1.95),)
    sharding = (Outage("shard/0", "shard/0/backup", 1.94, 9.0),)
    assert run(blank, sharding, until_s=2.0)["updates"] > 0


@pytest.mark.parametrize("at_s", [0.55, 0.75, 0.95])
def test_sums_go_on_where_replicas_have_parameters_of_either_copy(at_s):
    calm = run(config=SANDBLASTER)
    summary = run((Failure("shard/0", at_s, at_s + 0.2),), config=SANDBLASTER)
    assert summary["iterations"] == 4
    assert summary["train_loss"] == pytest.approx(calm["train_loss"], rel=1e-4)


def test_a_run_with_backups_can_be_taken_up(tmp_path):
    endless = dataclasses.replace(DOWNPOUR, steps=None)
    with Checkpoints(tmp_path) as checkpoints:
        first = run(config=endless, until_s=1.5, checkpoints=checkpoints)
        for content in (found := checkpoints.latest(), dataclasses.replace(found, exact=None)):
            again = run(config=endless, until_s=3.0, resume=content)
            assert again["updates"] > first["updates"] > 0


def test_a_promised_reply_waits_for_the_backup_to_know_what_it_shows():
    """Replica 0's gradient is followed, that of the slow replica 1, which ends the step, is not."""
    config = sgd.Config(optax.sgd(0.03), replicas=2, shards=1, shard_backups=1, steps=2)
    slow = {"replica/1": dbjax.Machine(speed=0.3)}
    sharding = (Outage("shard/0", "shard/0/backup", 0.2, 1.0),)
    cluster = dbjax.Cluster(compute_s=0.1, machines=slow, outages=sharding)
    rows = dbjax.run(TASK, config, cluster=cluster).trace.rows
    assert min(row["time_s"] for row in rows if "step" in row) >= 1.0
