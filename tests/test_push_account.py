"""Which pushes were acknowledged, lost, or applied twice, according to the event log."""

import dataclasses
import functools

import pytest

import dbjax
from dbjax.checkpoint import Every
from dbjax.monitoring.push_account import PushId, account_for_pushes
from dbjax.parameter_server.shard import Shard
from tests.checkpoint.stopped import Kept
from tests.parameter_server.test_failover_client import CLUSTER, IN_TURN, METHODS
from tests.test_conformance import TASK

PUSHING = [name for name in METHODS if name not in ("sandblaster", "free")]
STEPS = 40


def accounted(name, failures=(), **kwargs):
    """The account of a run's pushes, and its summary."""
    lines = []
    config = dataclasses.replace(METHODS[name], **kwargs)
    cluster = dataclasses.replace(CLUSTER, failures=failures)
    log = dbjax.EventLog(lines.append)
    result = dbjax.run(TASK, config, cluster=cluster, checkpoint_every=Every(seconds=0.3), log=log)
    return account_for_pushes(dbjax.Script(lines)), result.summary


def alone(failures):
    """The failures of nodes that a run without backups has."""
    return tuple(f for f in failures if not f.node.endswith("backup"))


@pytest.mark.parametrize("name", PUSHING)
def test_a_calm_run_applies_every_acknowledged_push_once(name):
    account, _ = accounted(name)
    assert (account.lost, account.doubled) == ([], [])
    assert account.acknowledged == account.applied > STEPS / 4
    if name.startswith("downpour"):
        assert account.acknowledged == METHODS[name].replicas * METHODS[name].shards * STEPS


@pytest.mark.parametrize("name", [name for name in PUSHING if name != "sgd [1]"])
def test_with_a_backup_every_acknowledged_push_is_applied_once_whoever_dies(name):
    replica = (dbjax.Failure("replica/0", 0.55, 0.8),)
    account, summary = accounted(name, (*replica, *IN_TURN), shard_backups=1)
    assert summary["deaths"] == 5
    assert (account.lost, account.doubled) == ([], [])
    assert account.applied >= account.acknowledged > STEPS / 4


@pytest.mark.parametrize("name", ["downpour [1]", "downpour [4]", "overlapping", "top k", "easgd"])
def test_without_a_backup_those_are_lost_that_the_shards_count(name):
    account, summary = accounted(name, alone(IN_TURN))
    assert len(account.lost) == summary["lost_pushes"] > 0
    assert {push.shard for push in account.lost} <= {"shard/0", "shard/1"}
    assert account.doubled == []


def test_a_push_that_a_takeover_repeats_is_found_if_shards_do_not_recognise_it(monkeypatch):
    """The sibling that fails: shards apply whatever they are sent."""
    monkeypatch.setattr(Shard, "pushed", lambda self, replica: 0)
    while_a_push_is_answered = (dbjax.Failure("shard/0", 1.036, 1.5),)
    account, _ = accounted("downpour [4]", while_a_push_is_answered, shard_backups=1)
    assert account.doubled
    assert account.lost == []


def test_a_push_that_is_acknowledged_but_not_applied_is_found(monkeypatch):
    """The sibling that fails: the shards answer a push as if they had applied it."""
    push, dropped = Shard.push, PushId("shard/0", "replica/2", 7)

    @functools.wraps(push)
    def careless(self, message):
        if (self._node.name, message.replica, message.sequence) == dropped:
            return self.peek().version
        return push(self, message)

    monkeypatch.setattr(Shard, "push", careless)
    account, _ = accounted("downpour [4]")
    assert (account.lost, account.doubled) == ([dropped], [])


def test_a_log_that_does_not_have_all_pushes_is_refused():
    lines, kept = [], Kept()
    config = METHODS["downpour [4]"]
    dbjax.run(
        TASK, config, cluster=CLUSTER, log=dbjax.EventLog(lines.append), until_s=1.0,
        checkpoints=kept,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"breaks off after line \d+, so it does not have all"):
        account_for_pushes(dbjax.Script(lines[:-1]))
    lines = []
    dbjax.run(
        TASK, config, cluster=CLUSTER, log=dbjax.EventLog(lines.append), resume=kept.latest
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not have all pushes: it was resumed"):
        account_for_pushes(dbjax.Script(lines))
    with pytest.raises(TypeError, match="is not a Script"):
        account_for_pushes(lines)
