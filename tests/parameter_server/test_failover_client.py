"""Shards that die: with a second copy nothing is lost, without one what is lost is counted."""

import dataclasses

import optax
import pytest

import dbjax
from dbjax import Failure
from dbjax.algorithms import downpour, easgd, sandblaster, sgd, ssp, top_k
from tests.test_conformance import TASK

CLUSTER = dbjax.Cluster(
    compute_s=0.1, latency_s=1e-3, service_s=1e-4,
    machine=dbjax.Machine(law="lognormal", sigma=0.3, bandwidth_bytes_per_s=1e5))  # fmt: skip
METHODS = {
    "downpour [1]": downpour.Config(optax.sgd(0.03), replicas=1, shards=2, steps=40),
    "downpour [4]": downpour.Config(optax.sgd(0.03), replicas=4, shards=2, steps=40),
    "overlapping": downpour.Config(
        optax.adagrad(0.1), replicas=4, shards=2, steps=40, n_fetch=3, n_push=2, overlap=True
    ),
    "warm start": downpour.Config(
        optax.sgd(0.03), replicas=4, shards=2, steps=40, warm_start_updates=20
    ),
    "sgd": sgd.Config(optax.sgd(0.03), replicas=3, shards=2, steps=40),
    "sgd [1]": sgd.Config(optax.sgd(0.03), steps=40),
    "sandblaster": sandblaster.Config(replicas=3, shards=2, steps=8, order="fixed"),
    "free": sandblaster.Config(replicas=3, shards=2, steps=8),
    "ssp": ssp.Config(optax.sgd(0.03), replicas=4, shards=2, steps=40, bound=1),
    "top k": top_k.Config(optax.sgd(0.03), replicas=4, shards=2, steps=40, n_push=2),
    "easgd": easgd.Config(optax.sgd(0.03), replicas=3, shards=2, steps=40),
}
HEAD = (Failure("shard/0", 1.03, 1.5),)
IN_TURN = (
    Failure("shard/0", 1.03, 1.5), Failure("shard/1/backup", 1.2, 1.3),
    Failure("shard/0/backup", 2.0, 2.6), Failure("shard/1", 2.1, 9.0),
)  # fmt: skip
SHARDED = [name for name in METHODS if name != "sgd [1]"]  # whose shards live on nodes of their own


def run(name, failures=(), backups=0, **kwargs):
    config = dataclasses.replace(METHODS[name], shard_backups=backups)
    return dbjax.run(
        TASK, config, cluster=dataclasses.replace(CLUSTER, failures=failures), **kwargs
    ).summary


@pytest.mark.parametrize("name", METHODS)
def test_a_backup_changes_only_the_time_of_one_replica(name):
    alone, backed = run(name), run(name, backups=1)
    if name in ("downpour [1]", "sgd", "sgd [1]", "sandblaster"):
        assert alone["params_sha256"] == backed["params_sha256"]
    assert backed["updates"] == alone["updates"]
    assert backed["time_s"] >= alone["time_s"]


@pytest.mark.parametrize("failures", [HEAD, IN_TURN], ids=["head", "in turn"])
@pytest.mark.parametrize("name", SHARDED)
def test_with_a_backup_no_push_is_lost_or_applied_twice(name, failures):
    calm, disturbed = run(name, backups=1), run(name, failures, backups=1)
    assert disturbed["deaths"] >= len(failures) - 1 > -1
    assert disturbed["lost_pushes"] == 0
    assert disturbed["updates"] == calm["updates"]
    assert disturbed["examples"] == calm["examples"]
    if name in ("downpour [1]", "sgd", "sandblaster"):
        assert disturbed["params_sha256"] == calm["params_sha256"]


@pytest.mark.parametrize("every_s", [None, 0.4])
@pytest.mark.parametrize("name", ["downpour [1]", "downpour [4]", "overlapping", "sgd"])
def test_without_one_the_loss_is_what_came_after_the_checkpoint(name, every_s):
    lost, before = run(name, HEAD, checkpoint_every=every_s and dbjax.Every(every_s)), run(name)
    due = before["updates"] - lost["updates"]
    assert lost["lost_pushes"] == due > 0
    if every_s is not None:
        assert due < run(name, HEAD)["lost_pushes"]


@pytest.mark.parametrize("every_s", [None, 0.4])
def test_sandblaster_goes_back_to_an_iteration_that_every_shard_knows(every_s):
    calm, disturbed = (
        run("sandblaster"),
        run("sandblaster", HEAD, checkpoint_every=every_s and dbjax.Every(every_s)),
    )
    assert disturbed["rewinds"] == 1
    assert disturbed["params_sha256"] == calm["params_sha256"]
    assert disturbed["time_s"] > calm["time_s"]


def test_sgd_alone_dies_with_its_parameters():
    failure = (Failure("replica/0", 1.03, 1.5),)
    assert run("sgd [1]", failure)["updates"] == 40  # it begins again, and loses nothing
    again = run("sgd [1]", failure, checkpoint_every=dbjax.Every(0.4))
    assert again["updates"] == 40
    assert again["params_sha256"] == run("sgd [1]")["params_sha256"]
    assert again["time_s"] < run("sgd [1]", failure)["time_s"]


def test_both_copies_dead_at_once_go_on_from_the_checkpoint():
    both = (Failure("shard/0", 1.03, 1.5), Failure("shard/0/backup", 1.1, 1.4))
    lost = run("downpour [4]", both, backups=1, checkpoint_every=dbjax.Every(0.4))
    assert lost["lost_pushes"] == run("downpour [4]")["updates"] - lost["updates"] > 0


def test_what_is_lost_of_a_replica_that_pushes_no_more_is_counted():
    """Replica 1 is slow: the shard dies when the other has made its 40 pushes."""
    slow = {"replica/1": dataclasses.replace(CLUSTER.machine, speed=0.3)}
    config = dataclasses.replace(METHODS["downpour [4]"], replicas=2, shards=1, steps=40)
    cluster = dataclasses.replace(CLUSTER, machines=slow, failures=(Failure("shard/0", 7.0, 7.5),))
    found = dbjax.run(TASK, config, cluster=cluster).summary
    assert found["lost_pushes"] == 80 - found["updates"] > 40


def test_a_run_that_ends_while_a_shard_is_dead_has_what_it_would_come_back_with():
    dead = (Failure("shard/0", 1.03, 9.0),)
    ended = run("downpour [4]", dead, checkpoint_every=dbjax.Every(0.4), until_s=2.0)
    assert 0 < ended["updates"] < run("downpour [4]", until_s=2.0)["updates"]


@pytest.mark.parametrize("method", [downpour, sgd, sandblaster])
def test_more_backups_than_one_are_refused(method):
    with pytest.raises(ValueError, match="shard_backups=2 must be 0 or 1"):
        method.Config(shard_backups=2)
