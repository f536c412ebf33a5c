"""Runs in real time, done again from their event logs."""

import dataclasses
import json

import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.errors import ReplayError
from tests.checkpoint.stopped import Kept
from tests.test_conformance import CLUSTER, TASK

METHODS = {
    "downpour": downpour.Config(optax.sgd(0.03), replicas=4, shards=3, steps=80),
    "overlapping": downpour.Config(
        optax.adagrad(0.1), replicas=4, shards=2, steps=80, n_fetch=3, n_push=2, overlap=True
    ),
    "warm start": downpour.Config(
        optax.sgd(0.03), replicas=4, shards=2, steps=60, warm_start_updates=10, warm_start_s=0.05
    ),
    "synchronous": sgd.Config(optax.sgd(0.03), replicas=4, shards=2, steps=40),
    "sandblaster": sandblaster.Config(replicas=4, shards=2, steps=6, backup_after=0.1),
    "backed up": downpour.Config(
        optax.sgd(0.03), replicas=4, shards=2, steps=40, shard_backups=1, overlap=True
    ),
    "sandblaster backed up": sandblaster.Config(
        replicas=4, shards=2, steps=4, shard_backups=1, backup_after=0.1
    ),
    "sampled": sandblaster.Config(replicas=4, shards=2, steps=6, sample=0.5),
}
methods = pytest.mark.parametrize("name", METHODS)


def logged(config, task=TASK, **kwargs):
    lines = []
    result = dbjax.run(task, config, log=dbjax.EventLog(lines.append), **kwargs)
    return result.summary["params_sha256"], lines


@methods
def test_a_run_in_threads_is_replayed_bit_for_bit(name):
    digest, lines = logged(METHODS[name], runtime="threads")
    script = dbjax.Script(lines)
    again = dbjax.replay(TASK, METHODS[name], script)
    assert again.params_sha256 == digest
    assert again.calls == script.count() > 100


def test_a_run_that_was_stopped_is_replayed_up_to_its_end():
    endless = dataclasses.replace(METHODS["overlapping"], steps=None)
    digest, lines = logged(endless, runtime="threads", until_s=0.5)
    assert dbjax.replay(TASK, endless, dbjax.Script(lines)).params_sha256 == digest


def test_two_runs_in_threads_differ_so_there_is_something_to_replay():
    digests = {logged(METHODS["overlapping"], runtime="threads")[0] for _ in range(4)}
    assert len(digests) > 1


@methods
def test_a_virtual_run_is_replayed_too(name):
    config = METHODS[name]
    if isinstance(config, sandblaster.Config):
        config = dataclasses.replace(config, order="fixed", send_every=1)
    digest, lines = logged(config, cluster=CLUSTER)
    assert dbjax.replay(TASK, config, dbjax.Script(lines)).params_sha256 == digest


def test_a_log_changes_nothing():
    def digest(**kwargs):
        return dbjax.run(TASK, METHODS["overlapping"], cluster=CLUSTER, **kwargs).summary[
            "params_sha256"
        ]

    assert digest() == digest(log=dbjax.EventLog(lambda line: None))


def swapped(lines, later):
    """The log, with two neighbouring calls of a shard in the other order.

    Args:
      later: by how much the second one's version is that of a push: 1, or of a fetch behind it: 0.
    """
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        calls = entry.get("calls", [])
        rows = [calls[i : i + 3] for i in range(0, len(calls), 3)]
        for before, a, b in zip(rows, rows[1:], rows[2:], strict=False):
            if a[0] != b[0] and a[2] == before[2] + 1 and b[2] == a[2] + later:
                a[:2], b[:2] = b[:2], a[:2]
                entry["calls"] = [x for row in rows for x in row]
                return [json.dumps(e) + "\n" for e in entries]
    raise AssertionError("no two such calls follow each other")


def test_a_log_in_another_order_gives_other_bytes():
    """Two pushes, one after the other: no version differs, but what is added first."""
    config = dataclasses.replace(METHODS["downpour"], rule=optax.adagrad(0.1))
    digest, lines = logged(config, cluster=CLUSTER)
    again = dbjax.replay(TASK, config, dbjax.Script(swapped(lines, 1)))
    assert again.params_sha256 != digest
    assert dbjax.replay(TASK, config, dbjax.Script(lines)).params_sha256 == digest


def test_a_log_in_which_a_fetch_comes_before_a_push_is_found_out():
    _, lines = logged(METHODS["downpour"], cluster=CLUSTER)
    with pytest.raises(ReplayError, match="the log says"):
        dbjax.replay(TASK, METHODS["downpour"], dbjax.Script(swapped(lines, 0)))


def test_a_log_of_another_program_is_found_out():
    _, lines = logged(METHODS["downpour"], runtime="threads")
    for other in (
        dataclasses.replace(METHODS["downpour"], steps=40),
        dataclasses.replace(METHODS["downpour"], n_push=2),
    ):
        with pytest.raises(ReplayError):
            dbjax.replay(TASK, other, dbjax.Script(lines))


def test_a_log_that_breaks_off_is_read_up_to_there():
    _, lines = logged(METHODS["downpour"], runtime="threads")
    whole = dbjax.Script(lines).count()
    last = max(i for i, line in enumerate(lines) if '"calls"' in line)
    missing = len(json.loads(lines[last])["calls"]) // 3
    read = dbjax.Script([*lines[:last], lines[last][:-2]]).count()
    assert read == whole - missing
    assert 0 < read < whole


def test_a_run_in_which_nodes_died_or_that_was_taken_up_says_that_it_has_no_replay():
    machine = dataclasses.replace(CLUSTER.machine, mean_time_to_repair_s=0.3)
    failures = (dbjax.Failure("replica/1", 0.5, 1.0),)
    cluster = dataclasses.replace(CLUSTER, machine=machine, failures=failures)
    config = METHODS["downpour"]
    _, lines = logged(config, cluster=cluster)
    with pytest.raises(ReplayError, match=r"^this run cannot be done again: replica/1 died$"):
        dbjax.replay(TASK, config, dbjax.Script(lines))
    kept = Kept()
    dbjax.run(TASK, config, cluster=CLUSTER, until_s=1.0, checkpoints=kept)
    _, lines = logged(config, cluster=CLUSTER, resume=kept.latest)
    with pytest.raises(ReplayError, match="it was taken up from a checkpoint"):
        dbjax.replay(TASK, config, dbjax.Script(lines))


NO_LOG = '{"dbjax event log": 9}\n', '{"dbjax event log": 1}\n{"service": "shard/0"}\n'


@pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n", *NO_LOG])
def test_what_is_no_log_is_refused(text):
    with pytest.raises(ValueError, match="event log"):
        dbjax.Script(text.splitlines(keepends=True))
