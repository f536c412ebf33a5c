"""Runs in real time, done again from their event logs."""

import dataclasses
import errno
import functools
import json
import random

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint import Every
from dbjax.errors import ReplayError
from dbjax.parameter_server.shard import Shard
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
        events = entry.get("events", [])
        rows = [events[i : i + 3] for i in range(0, len(events), 3)]
        calls = [row for row in rows if len(entry["sources"][row[0]]) == 3]
        for before, a, b in zip(calls, calls[1:], calls[2:], strict=False):
            if a[0] != b[0] and a[2] == before[2] + 1 and b[2] == a[2] + later:
                a[:2], b[:2] = b[:2], a[:2]
                entry["events"] = [x for row in rows for x in row]
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


def snapshots(monkeypatch, replay):
    """What shards held after each push of a replay, by incarnation and version; and its result."""
    push, seen = Shard.push, {}

    @functools.wraps(push)
    def noted(self, message):
        version = push(self, message)
        values = {name: np.asarray(piece) for name, piece in self.peek().params.items()}
        at = self._node.name, self._node.incarnation, version
        seen[at] = {name: v.tobytes() for name, v in values.items()}
        return version

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "push", noted)
        return seen, replay()


@pytest.mark.parametrize("name", ["overlapping", "warm start", "synchronous", "backed up"])
def test_a_log_that_breaks_off_anywhere_is_replayed_up_to_there(name, monkeypatch, caplog):
    """Streams are written in batches: a cut leaves them at different places."""
    monkeypatch.setattr("dbjax.runtime.event_log._BATCH", 16)
    config = METHODS[name]
    digest, lines = logged(config, runtime="threads")
    text = "".join(lines)
    whole, ended = snapshots(monkeypatch, lambda: dbjax.replay(TASK, config, dbjax.Script(lines)))
    assert (ended.params_sha256, ended.breaks_off) == (digest, None)
    draws, found = random.Random(name), []
    tail = len(text) // 5  # what is written when the run ends holds few calls
    partition = [draws.randrange(len(lines[0]), len(text) - tail) for _ in range(6)]
    for sharding in [len(lines[0]), *partition, len(text) - 1]:
        script = dbjax.Script(text[:sharding].splitlines(keepends=True))
        line = text[:sharding].count("\n")
        where = f"after line {line}" if text[sharding - 1] == "\n" else f"in line {line + 1}"
        caplog.clear()
        part, again = snapshots(monkeypatch, lambda log=script: dbjax.replay(TASK, config, log))
        assert part.items() <= whole.items()
        assert again.calls <= script.count()
        assert again.breaks_off == where
        assert [r.getMessage() for r in caplog.records] == [
            f"the event log breaks off {where}: {again.calls} of its {script.count()} calls were "
            "replayed, the rest of the run is unknown"
        ]
        found.append((sharding, again.calls))
    assert [calls for _, calls in sorted(found)] == sorted(calls for _, calls in found)
    assert found[0][1] == 0 < max(calls for _, calls in found[1:-1]) < ended.calls
    assert (found[-1][1], again.params_sha256) == (ended.calls, digest)  # all but the end mark


def test_a_line_that_is_missing_or_damaged_is_where_the_log_breaks_off():
    _, lines = logged(METHODS["downpour"], runtime="threads")
    assert dbjax.Script(lines).breaks_off is None
    assert dbjax.Script([*lines[:2], *lines[3:]]).breaks_off == "before its end"
    for bad in ("nonsense\n", lines[2].replace("[", "[[", 1), '{"service": 3, "calls": [0]}\n'):
        assert dbjax.Script([*lines[:2], bad, *lines[3:]]).breaks_off == "in line 3"


def test_a_log_that_cannot_be_written_any_more_loses_nothing_of_the_run(caplog):
    lines = []

    def write(text):
        if len(lines) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        lines.append(text)

    config = METHODS["downpour"]
    result = dbjax.run(TASK, config, runtime="threads", log=dbjax.EventLog(write))
    assert result.summary["updates"] == 320
    said = [r.getMessage() for r in caplog.records]
    assert said == ["the event log breaks off here: OSError: [Errno 28] No space left on device"]
    assert dbjax.replay(TASK, config, dbjax.Script(lines)).breaks_off == "after line 3"


DEATHS = (
    dbjax.Failure("replica/1", 0.5, 1.0), dbjax.Failure("shard/0", 0.7, 1.1),
    dbjax.Failure("shard/1/backup", 0.9, 1.3), dbjax.Failure("replica/1", 1.2, 1.4),
    dbjax.Failure("shard/0/backup", 1.5, 1.7), dbjax.Failure("shard/0", 2.0, 2.2),
)  # fmt: skip


def disturbed(name, **kwargs):
    """The digest and the log of a run in which nodes die; a shard has a backup only by its name."""
    config = METHODS[name]
    backed = getattr(config, "shard_backups", 0)
    failures = tuple(f for f in DEATHS if backed or not f.node.endswith("backup"))
    cluster = dataclasses.replace(CLUSTER, failures=failures)
    return logged(config, cluster=cluster, checkpoint_every=Every(seconds=0.2), **kwargs)


@methods
def test_a_run_in_which_nodes_died_is_replayed_bit_for_bit(name):
    """Shards with backups are taken over, and installed again; others restore a checkpoint."""
    digest, lines = disturbed(name)
    script = dbjax.Script(lines)
    assert script.incarnations("shard/0", of_service=True) == 3
    again = dbjax.replay(TASK, METHODS[name], script)
    assert (again.params_sha256, again.breaks_off) == (digest, None)
    assert again.calls == script.count() > 100


def without(lines, *, kind):
    """The log without the observations of this kind, and complete all the same."""
    kept = [line for line in lines[:-1] if json.loads(line).get("kind") != kind]
    assert len(kept) < len(lines) - 1
    return [*kept, json.dumps({"end": len(kept)}) + "\n"]


def test_a_log_without_the_deaths_is_found_out():
    _, lines = disturbed("backed up")
    with pytest.raises(ReplayError, match="calls in the log were made"):
        dbjax.replay(TASK, METHODS["backed up"], dbjax.Script(without(lines, kind="died")))


def test_the_state_with_which_a_shard_began_is_part_of_the_replay():
    """Two checkpoints differ, so a log that names the other one is no log of this run."""
    _, lines = disturbed("downpour")
    entries = [json.loads(line) for line in lines]
    began = [entry for entry in entries if entry.get("state") is not None]
    assert len({entry["state"] for entry in began}) > 1
    for entry in began:
        entry["state"] = min(entry["state"] for entry in began)
    damaged = dbjax.Script([json.dumps(entry) + "\n" for entry in entries])
    with pytest.raises(ReplayError, match="the log says"):
        dbjax.replay(TASK, METHODS["downpour"], damaged)


@pytest.mark.parametrize("name", ["downpour", "backed up"])
def test_a_log_with_deaths_that_breaks_off_anywhere_is_replayed_up_to_there(name, monkeypatch):
    monkeypatch.setattr("dbjax.runtime.event_log._BATCH", 16)
    config = METHODS[name]
    digest, lines = disturbed(name)
    text = "".join(lines)
    whole, ended = snapshots(monkeypatch, lambda: dbjax.replay(TASK, config, dbjax.Script(lines)))
    assert ended.params_sha256 == digest
    draws, found = random.Random(name), set()
    for end in [draws.randrange(len(lines[0]), len(text)) for _ in range(6)]:
        script = dbjax.Script(text[:end].splitlines(keepends=True))
        part, again = snapshots(monkeypatch, lambda log=script: dbjax.replay(TASK, config, log))
        assert part.items() <= whole.items()
        found.add(again.calls)
    assert len(found) > 3  # so it is not that nothing can be replayed


def test_a_run_that_was_resumed_says_that_it_has_no_replay():
    config, kept = METHODS["downpour"], Kept()
    dbjax.run(TASK, config, cluster=CLUSTER, until_s=1.0, checkpoints=kept)
    _, lines = logged(config, cluster=CLUSTER, resume=kept.latest)
    with pytest.raises(ReplayError, match="it was resumed from a checkpoint"):
        dbjax.replay(TASK, config, dbjax.Script(lines))


NO_LOG = '{"dbjax event log": 9}\n', '{"dbjax event log": 1}\n{"service": "shard/0"}\n'


@pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n", *NO_LOG])
def test_what_is_no_log_is_refused(text):
    with pytest.raises(ValueError, match="event log"):
        dbjax.Script(text.splitlines(keepends=True))
