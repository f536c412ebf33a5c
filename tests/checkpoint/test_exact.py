"""Virtual runs that are stopped between any two events and taken up: every bit is the same."""

import dataclasses
import random

import optax
import pytest

import dbjax
from dbjax import Failure
from dbjax.optim import ConjugateGradients
from tests.checkpoint.stopped import Kept, run, told
from tests.parameter_server.test_failover_client import CLUSTER, HEAD, IN_TURN, METHODS
from tests.processes import printed

DRAWN = dataclasses.replace(
    CLUSTER.machine, mean_time_between_failures_s=6.0, mean_time_to_repair_s=0.3
)
REPLICAS = (Failure("replica/0", 1.03, 1.5), Failure("replica/1", 0.7, 0.71))
CLUSTERS = {
    "calm": CLUSTER,
    "head": dataclasses.replace(CLUSTER, failures=HEAD),
    "in turn": dataclasses.replace(CLUSTER, failures=IN_TURN),
    "replicas": dataclasses.replace(CLUSTER, failures=REPLICAS),
    "drawn": dataclasses.replace(CLUSTER, machine=DRAWN),
    "coordinator": dataclasses.replace(CLUSTER, failures=(Failure("coordinator", 1.03, 1.5),)),
}
CLUSTERS["network"] = dataclasses.replace(
    CLUSTER,
    outages=(dbjax.Outage("replica/0", "shard/*", 0.9, 1.4),),
    links=(dbjax.Link("replica/*", "shard/1", latency_s=5e-3, duplicate_probability=0.3),),
)
OPTIONS = {
    "timed": ("downpour [4]", {"steps": None}),
    "late": ("warm start", {"warm_start_s": 1.0}),
    "momentum": ("overlapping", {"rule": optax.sgd(0.01, momentum=0.9)}),
    "own rule": ("overlapping", {"local_rule": optax.adam(0.01)}),
    "copying": ("free", {"backup_after": 0.1, "send_every": 2}),
    "sampled": ("free", {"sample": 0.5}),
    "conjugate": ("free", {"method": ConjugateGradients()}),
}
CASES = [
    *((name, cluster, backups) for name in METHODS for cluster, backups in
      [("calm", 0), ("head", 0), ("head", 1), ("in turn", 1)] if name != "sgd [1]"),
    ("sgd [1]", "calm", 0), ("downpour [4]", "replicas", 0), ("overlapping", "replicas", 1),
    ("free", "replicas", 0), ("sandblaster", "replicas", 1),
    *((name, "drawn", backups) for name in ("downpour [4]", "free") for backups in (0, 1)),
    ("sgd", "replicas", 0),
    ("overlapping", "network", 0), ("free", "network", 1),
    ("sandblaster", "coordinator", 0), ("free", "coordinator", 0),
    *((name, "calm", 0) for name in OPTIONS),
]  # fmt: skip


def case(name, cluster="calm", backups=0):
    base, options = OPTIONS.get(name, (name, {}))
    config = dataclasses.replace(METHODS[base], shard_backups=backups, **options)
    given = {
        "cluster": CLUSTERS[cluster],
        "evaluate_every_s": 0.37,
        "checkpoint_every": dbjax.Every(0.4),
        "until_s": 4.0 if name == "timed" else None,
    }
    return config, given


def require_same(plain, again):
    (numbers, rows), (their_numbers, their_rows) = told(plain), told(again)
    assert their_numbers == numbers
    assert [r for r in their_rows if lasts(r)] == [r for r in rows if lasts(r)]
    assert [repr(r) for r in their_rows if repr(r) not in set(map(repr, rows))] == []


def lasts(row):
    return "event" in row or not row["node"].startswith("replica/")


@pytest.mark.parametrize(("name", "cluster", "backups"), CASES)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(name, cluster, backups, monkeypatch):
    config, given = case(name, cluster, backups)
    kept = Kept()
    plain, events = run(config, monkeypatch, **given)
    watched, watched_events = run(config, monkeypatch, checkpoints=kept, **given)
    require_same(plain, watched)  # checkpoints change nothing
    assert watched_events == events
    stop = random.Random(repr((name, cluster, backups))).randrange(1, events)
    stopped = Kept()
    run(config, monkeypatch, stop=stop, checkpoints=stopped, **given)
    again, left = run(config, monkeypatch, checkpoints=Kept(), resume=stopped.latest, **given)
    assert stop + left == events
    require_same(plain, again)
    # and from one of the checkpoints on the way
    content = random.Random(stop).choice(kept.all)
    again, _ = run(config, monkeypatch, checkpoints=Kept(), resume=content, **given)
    require_same(plain, again)


@pytest.mark.parametrize("name", ["timed", "endless overlapping", "endless free"])
@pytest.mark.parametrize("every_s", [0.37, 0.25])
def test_a_run_that_ended_and_is_given_more_time_is_one_run(name, every_s, monkeypatch):
    """Evaluations too: 0.25 s is a whole part of the first run, 0.37 s is not."""
    config, given = case(name.removeprefix("endless "), "in turn", 1)
    config = dataclasses.replace(config, steps=None)
    given |= {"evaluate_every_s": every_s}
    plain, _ = run(config, monkeypatch, **given | {"until_s": 4.0})
    kept = Kept()
    first, _ = run(config, monkeypatch, checkpoints=kept, **given | {"until_s": 2.0})
    assert not first.summary["interrupted"]
    again, _ = run(config, monkeypatch, resume=kept.latest, **given | {"until_s": 4.0})
    require_same(plain, again)
    assert again.summary["updates"] > first.summary["updates"]


def test_a_run_that_is_taken_up_may_be_looked_at_at_other_times(monkeypatch):
    config, given = case("timed")
    plain, events = run(config, monkeypatch, **given)
    kept = Kept()
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given)
    again, _ = run(config, monkeypatch, resume=kept.latest, **given | {"evaluate_every_s": 0.1})
    assert again.summary["params_sha256"] == plain.summary["params_sha256"]
    times = [row["time_s"] for row in again.evaluations if row["time_s"] > kept.latest.time_s]
    assert times == pytest.approx([0.1 * k for k in range(41 - len(times), 41)])
    assert len(times) > 10


async def killer(node, runtime):
    """Beside the run: keeps nothing, and kills a replica now and then."""
    for number in range(5):
        await node.sleep(0.7)
        runtime.kill(f"replica/{number % 3}")


@pytest.mark.parametrize("log", [False, True])
def test_with_a_main_beside_it_and_a_log(log, monkeypatch):
    config, given = case("overlapping")
    machine = dataclasses.replace(CLUSTER.machine, mean_time_to_repair_s=0.2)
    given |= {"background": killer, "cluster": dataclasses.replace(CLUSTER, machine=machine)}

    def logged():
        return {"log": dbjax.EventLog(lambda line: None)} if log else {}

    plain, events = run(config, monkeypatch, **given)
    assert plain.summary["deaths"] == 5
    kept = Kept()
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given, **logged())
    again, left = run(config, monkeypatch, checkpoints=Kept(), resume=kept.latest, **given)
    assert left == events - events // 2
    require_same(plain, again)


def test_the_costs_of_the_compiled_program_are_found_again(monkeypatch):
    config, given = case("downpour [4]")
    given["cluster"] = dataclasses.replace(
        CLUSTER, compute_s="costs", machine=dataclasses.replace(CLUSTER.machine, flops_per_s=1e4)
    )
    plain, events = run(config, monkeypatch, **given)
    kept = Kept()
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given)
    again, left = run(config, monkeypatch, checkpoints=Kept(), resume=kept.latest, **given)
    assert left == events - events // 2
    require_same(plain, again)


def test_the_first_run_of_a_process_is_the_same_program_as_the_second(monkeypatch, caplog):
    """What is compiled for a rule is kept, with the values that the first run gave it."""
    rule = optax.chain(optax.scale_by_rss(), optax.scale(-0.1))  # that no other test has compiled
    config = dataclasses.replace(METHODS["downpour [4]"], rule=rule)
    kept = Kept()
    with caplog.at_level("INFO", "dbjax"):
        run(config, monkeypatch, stop=100, checkpoints=kept, cluster=CLUSTER)
        again, _ = run(config, monkeypatch, resume=kept.latest, cluster=CLUSTER)
    assert caplog.text == ""
    require_same(run(config, monkeypatch, cluster=CLUSTER)[0], again)


def test_stopped_again_and_again(monkeypatch):
    config, given = case("overlapping", "in turn", 1)
    plain, events = run(config, monkeypatch, **given)
    content, done, result = None, 0, None
    for _ in range(6):
        kept = Kept()
        step = events // 5
        result, more = run(
            config, monkeypatch, stop=step, checkpoints=kept, resume=content, **given
        )
        content, done = kept.latest, done + more
    assert done == events
    require_same(plain, result)


def test_what_only_the_shards_know_gives_other_bytes(monkeypatch):
    config, given = case("downpour [4]")
    plain, events = run(config, monkeypatch, **given)
    kept = Kept()
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given)
    content = dataclasses.replace(kept.latest, exact=None)
    again, _ = run(config, monkeypatch, checkpoints=Kept(), resume=content, **given)
    assert again.summary["updates"] == plain.summary["updates"]
    assert again.summary["params_sha256"] != plain.summary["params_sha256"]


@pytest.mark.parametrize("change", [{"n_fetch": 2}, {"rule": optax.sgd(0.02)}, {"replicas": 3}])
def test_another_program_takes_up_what_the_shards_know(change, monkeypatch, caplog):
    config, given = case("downpour [4]")
    kept = Kept()
    _, events = run(config, monkeypatch, **given)
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given)
    other = dataclasses.replace(config, **change)
    with caplog.at_level("INFO", "dbjax"):
        again, _ = run(other, monkeypatch, checkpoints=Kept(), resume=kept.latest, **given)
    assert "not the same program" in caplog.text
    assert again.summary["updates"] >= 120


def test_the_journal_of_a_method_that_keeps_nothing_is_from_the_beginning(monkeypatch):
    config, given = case("downpour [4]")
    plain, events = run(config, monkeypatch, **given)
    monkeypatch.setattr(
        "dbjax.runtime.virtual.node.VirtualNode.save_progress", lambda self, state: None
    )
    kept = Kept()
    run(config, monkeypatch, stop=events // 2, checkpoints=kept, **given)
    again, left = run(config, monkeypatch, checkpoints=Kept(), resume=kept.latest, **given)
    assert left == events - events // 2
    require_same(plain, again)


def test_a_run_that_cannot_be_held_says_so_and_keeps_what_the_shards_know(monkeypatch, caplog):
    class Strange:
        pass

    Strange.__module__ = "elsewhere"
    config, given = case("downpour [1]")
    kept = Kept()
    before = dbjax.runtime.virtual.VirtualRuntime.run

    def strange(self, until_s):
        self.latest_states["strange"] = Strange()
        return before(self, until_s)

    monkeypatch.setattr("dbjax.runtime.virtual.VirtualRuntime.run", strange)
    run(config, monkeypatch, stop=50, checkpoints=kept, **given)
    assert "cannot be resumed exactly" in caplog.text
    assert kept.latest.exact is None


def test_replicas_that_are_cut_over_devices_go_on_exactly_too():
    found = printed("tests.checkpoint.partitioned_run")
    assert found["again"] == found["whole"]
    assert found["whole"]["updates"] > found["half"]["updates"] > 0
