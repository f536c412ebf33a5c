"""What the report reads and reckons, by hand."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.runtime.cluster import Machine
from experiments import build
from experiments.report import laws, page, utilisation
from experiments.report.__main__ import main
from experiments.report.read import labels, read
from experiments.report.timeline import TICKS, timeline, with_deaths
from experiments.saved import saved
from tests.experiments.runs import ROWS, leave

SPANS = [
    ("replica/0", "compute", 0.0, 10.0),
    ("replica/0", "fetch", 10.0, 12.0),
    ("replica/1", "compute", 0.0, 5.0),
    ("replica/1", "compute", 15.0, 25.0),  # beyond the end
    ("shard/0", "apply", 2.0, 4.0),
    ("shard/0", "fetch", 3.0, 5.0),  # at once with the other: counts once
    ("shard/0", "follow", 6.0, 20.0),  # waits for its other copy
]


def read_one(path, **given):
    return read(leave(path / "one", **given), "one")


def test_busy_shares_are_those_of_the_spans(tmp_path):
    run = read_one(tmp_path, spans=SPANS)
    replicas, shards = utilisation.nodes(run)
    assert replicas.shares == pytest.approx((0.5, 0.5))  # 10 of 20 s; 5 + 5
    assert shards.shares == pytest.approx((3 / 20,))
    for one in (replicas, shards):  # parts of the run add up to the whole
        assert np.mean(one.over_time) == pytest.approx(one.mean)
    assert replicas.over_time[0] == pytest.approx(1.0)
    assert replicas.over_time[utilisation.BINS * 6 // 10] == 0.0  # at 12 s both wait


def test_what_lasts_inside_another_span_counts_once(tmp_path):
    """Busy from 2 to 6 and from 8 to 9 s, whatever begins and ends meanwhile."""
    lasting = [("shard/0", "apply", a, b) for a, b in ((2, 6), (3, 4), (5, 5.5), (8, 9), (8, 8.5))]
    spans = read_one(tmp_path, spans=lasting).spans
    times_s = np.array([0.0, 3.0, 4.5, 6.0, 7.0, 8.25, 20.0])
    found = utilisation.busy_until(spans, np.ones(len(spans), bool), times_s)
    assert found.tolist() == [0.0, 1.0, 2.5, 4.0, 4.0, 4.25, 5.0]


@pytest.mark.parametrize(("by", "state"), [(None, "finished"), ("SIGINT", "interrupted")])
def test_a_run_that_was_interrupted_is_told_from_one_that_has_ended(by, state, tmp_path):
    path = leave(tmp_path / "one")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"interrupted": by}))
    assert read(path, "one").state == state


def test_a_copy_that_takes_over_works_for_its_shard(tmp_path):
    """Before, it only follows: that is no work. After, what it applies is the shard's."""
    after = [
        ("shard/0/backup", "follow", 0.0, 6.0),
        ("shard/0/backup", "apply", 10.0, 14.0),
    ]
    _, shards = utilisation.nodes(read_one(tmp_path, spans=[*SPANS, *after]))
    assert shards.shares == pytest.approx(((3 + 4) / 20,))


def test_busy_shares_end_where_spans_were_dropped(tmp_path):
    run = read_one(tmp_path, spans=SPANS, dropped=3)
    assert utilisation.extent(run) == (0.0, 15.0)
    assert utilisation.nodes(run)[0].shares == pytest.approx((10 / 15, 5 / 15))


def test_cards_are_busy_between_evaluations():
    rows = [{"time_s": t, **({"cards_busy_s": {"shard sends": b}} if b is not None else {})}
            for t, b in ((0, None), (10, 5.0), (20, 6.0), (30, 2.0), (40, 12.0))]  # fmt: skip
    (cards,) = utilisation.cards(rows)
    assert cards.over_time[:2] == pytest.approx((0.5, 0.1))
    assert np.isnan(cards.over_time[2])  # less than before: the run was taken up
    assert cards.mean == pytest.approx((5 + 1 + 10) / 30)


def test_histogram_holds_every_push():
    histogram = {0: 3, 1: 500, 2: 400, 3: 96, 200: 1}
    bars = laws.bars(histogram, None)
    assert sum(bar.count for bar in bars) == 1000
    assert [(bar.first, bar.last, bar.count) for bar in bars[-2:]] == [(3, 3, 96), (4, 200, 1)]
    wide = laws.bars(dict.fromkeys(range(300), 2), dict.fromkeys(range(300), 1 / 300))
    assert sum(bar.count for bar in wide) == 600
    assert sum(bar.predicted for bar in wide) == pytest.approx(1.0)
    assert len({bar.last - bar.first for bar in wide}) == 1
    assert laws.bars({}, None) == []


def config(**machine):
    cluster = {"compute_s": 1.0, "machine": machine}
    return {"cluster": cluster, "options": {"replicas": 4, "shards": 2}}


def test_the_law_is_that_of_the_configuration(tmp_path):
    constant = laws.law(read_one(tmp_path / "constant", **config(law="constant")))
    assert constant.shares == {3: 1.0}
    exponential = laws.law(read_one(tmp_path / "exponential", **config(law="exponential")))
    assert exponential.shares[2] == pytest.approx((1 / 4) * (3 / 4) ** 2)
    assert sum(exponential.shares.values()) == pytest.approx(1.0, abs=1e-5)
    varying = laws.law(read_one(tmp_path / "drawn", **config(law="lognormal", sigma=0.3)))
    assert "No closed form" in varying.message
    assert sum(varying.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"runtime": "threads"}, "in real time"),
        ({"cluster": {"latency_s": 0.1}}, "messages"),
        ({"cluster": {"machine": {"mean_time_between_failures_s": 9.0}}}, "nodes fail"),
        ({"options": {"replicas": 4, "n_fetch": 2}}, "a fetch serves several pushes"),
        ({"options": {"replicas": 4, "warm_start_updates": 5}}, "warm start"),
        ({"options": {"replicas": 4, "overlap": True}}, "overlap"),
        ({"algorithm": "sandblaster", "rule": {"name": "lbfgs"}}, "No prediction"),
    ],
)
def test_where_no_law_is_known_it_says_why(changes, why, tmp_path):
    law = laws.law(read_one(tmp_path, **changes))
    assert law.shares is None
    assert why in law.message


def test_drawn_law_is_geometric_for_exponential_times():
    """Of a long run; 100,000 pushes, so shares are right to 0.005 (more than 4 sigma)."""
    drawn = laws.drawn([Machine(law="exponential")] * 3, 1, 2000.0)
    exact = laws.geometric(3)
    assert all(abs(drawn.get(k, 0) - exact[k]) < 0.005 for k in range(20))
    other = laws.drawn([Machine(law="lognormal", sigma=0.2)] * 3, 1, 2000.0)
    assert abs(other.get(0, 0) - exact[0]) > 0.1


def simulated(speeds, steps, until, seed):
    """Staleness of pushes: of replicas that each push after `steps` exponential times, event by
    event."""
    random = np.random.default_rng(seed)
    took = [iter(random.exponential(1 / v, (50_000, steps)).sum(1)) for v in speeds]
    due = [next(times) for times in took]
    version, fetched, found = 0, [0] * len(speeds), {}
    while min(due) < until:
        replica = due.index(min(due))
        staleness = version - fetched[replica]
        found[staleness] = found.get(staleness, 0) + 1
        version += 1
        fetched[replica] = version
        due[replica] += next(took[replica])
    total = sum(found.values())
    return {k: times / total for k, times in found.items()}


@pytest.mark.parametrize(
    ("speeds", "steps"), [((1.0, 1.0, 1.0), 4), ((1.0, 0.25), 1), ((1.0, 0.5, 0.25), 3)]
)
def test_drawn_law_is_that_of_a_simulation(speeds, steps):
    """20,000 pushes or more, so that a share is right to 4 sqrt(1/4 / 20,000) = 0.014."""
    machines = [Machine(law="exponential", speed=v) for v in speeds]
    drawn = laws.drawn(machines, steps, 4000.0)
    found = simulated(speeds, steps, 20_000 * steps / sum(speeds), seed=1)
    assert all(abs(drawn.get(k, 0) - found.get(k, 0)) < 0.014 for k in range(40))
    equal = laws.drawn([Machine(law="exponential")] * len(speeds), 1, 4000.0)
    assert any(abs(equal.get(k, 0) - found.get(k, 0)) > 0.03 for k in range(40))


def test_drawn_law_of_constant_times_by_hand():
    """Pushes at 1, 2, 3, ... and at 2, 4, 6, ..., where the first comes first at equal times.

    The second has two pushes of the first between its own; the first has one of the second after
    an even time, and none after an odd one.
    """
    shares = laws.drawn([Machine(), Machine(speed=0.5)], 1, 10_000.0)
    assert shares == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=1e-3)  # but for the ends
    together = laws.drawn([Machine(), Machine(speed=0.5)], 5, 10_000.0)
    assert together == pytest.approx(shares, abs=2e-3)  # as many times as long


@pytest.mark.parametrize(
    ("options", "machines"),
    [
        ({"n_push": 3, "n_fetch": 3}, {}),
        ({"n_push": 2, "n_fetch": 2}, {"replica/0": {"law": "exponential", "speed": 0.2}}),
    ],
)
def test_a_run_with_n_push_or_unequal_machines_follows_its_law(options, machines, tmp_path):
    cluster = {"compute_s": 0.01, "machine": {"law": "exponential"}, "machines": machines}
    given = {"cluster": cluster, "options": {"replicas": 3, "shards": 1, **options}}
    run = read_one(tmp_path, **given)  # of 20 s
    shares = laws.law(run).shares
    task = dbjax.Task(
        jnp.zeros(1), lambda w, x: jnp.sum(w) + x[0], np.zeros(9, np.float32), batch_size=1
    )
    method = downpour.Config(optax.sgd(0.0), **given["options"])
    found = dbjax.run(task, method, cluster=build.cluster(saved(run.path)), until_s=run.end_s)
    total = sum(found.staleness_histogram.values())

    def apart(law):
        keys = {*law, *found.staleness_histogram}
        measured = found.staleness_histogram
        return sum(abs(measured.get(k, 0) / total - law.get(k, 0)) for k in keys) / 2

    # 2,000 pushes over some 15 bars: half the sum of their errors is about 0.03
    assert apart(shares) < 0.06
    assert apart(laws.geometric(3)) > 0.1


def test_a_measured_run_follows_the_law(tmp_path):
    from experiments import run

    given = ["--config.cluster.machine.law=exponential", "--config.cluster.machine.sigma=0.0",
             "--config.evaluations=1", "--config.checkpoint.keep=0"]  # fmt: skip
    assert run.main(["--config=configs/quickstart.py", f"--workdir={tmp_path}", *given]) == 0
    found = page.staleness(read(tmp_path, "run"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    total = sum(bar["count"] for bar in found["bars"])
    assert total == 3 * summary["updates"]  # each of 3 shards counts each push
    assert found["mean"] == pytest.approx(summary["staleness_updates"]["mean"])
    apart = sum(abs(bar["count"] / total - bar["predicted"]) for bar in found["bars"]) / 2
    assert apart < 0.1  # some 1,500 pushes over 40 bars


def blocks(found):
    return sum(len(track["blocks"]) // 2 for track in found["tracks"])


def test_timeline_keeps_every_span_or_says_so(tmp_path):
    spans = [("replica/0", "compute", i / 10, i / 10 + 0.05) for i in range(100)]
    spans += [("replica/1", "compute", i, i + 0.5) for i in range(10)]
    run = read_one(tmp_path, spans=spans)
    whole = timeline(run, 1000)
    assert (blocks(whole), whole["joined_below_s"]) == (110, None)
    first = next(track for track in whole["tracks"] if track["node"] == 0)["blocks"]
    assert first[:4] == pytest.approx([0, TICKS // 400, TICKS // 200, TICKS // 400])
    fewer = timeline(run, 20)
    assert blocks(fewer) == fewer["drawn"] <= 20
    assert 0 < fewer["joined_below_s"] < 0.5  # the longer gaps stay
    counts = [sum(t.get("counts", [1] * (len(t["blocks"]) // 2))) for t in fewer["tracks"]]
    assert sorted(counts) == [10, 100]


def test_deaths_are_spans_until_the_return(tmp_path):
    events = [{"time_s": t, "node": "shard/0", "event": event}
              for t, event in ((3.0, "died"), (5.0, "returned"), (18.0, "died"))]  # fmt: skip
    run = read_one(tmp_path, spans=SPANS, rows=[ROWS[0], *events, *ROWS[1:]])
    assert [row["updates"] for row in run.rows] == [0, 40, 80]
    spans = with_deaths(run).spans
    dead = spans.kind == spans.kinds.index("dead")
    assert list(zip(spans.start_s[dead], spans.end_s[dead], strict=True)) == [(3, 5), (18, 20)]


def test_labels_tell_directories_apart():
    assert labels(["runs/a", "runs/b"]) == ["a", "b"]
    assert labels(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert labels(["x/run", "x/run"]) == ["run", "run"]


def test_an_unfinished_run_has_no_spans_of_an_earlier_one(tmp_path):
    path = leave(tmp_path / "one", spans=SPANS)
    (path / "summary.json").unlink()
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"time_s": 25.0, "no')  # killed while it wrote
    run = read(path, "one")
    assert (run.state, len(run.spans), run.end_s) == ("unfinished", 0, 20.0)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "is not a dbjax run: it has no config.json"),
        (lambda path: (path / "trace.json").write_text("{"), "is not what a run leaves"),
        (lambda path: (path / "metrics.jsonl").write_text("[]\n[]\n"), "is not what a run leaves"),
        (lambda path: (path / "metrics.jsonl").write_text(""), "is not what a run leaves"),
    ],
)
def test_what_is_no_run_is_one_clear_error(break_it, said, tmp_path):
    path = leave(tmp_path / "one")
    break_it(path)
    with pytest.raises(ValueError, match=said):
        main([str(path)])


def test_a_directory_of_runs_names_them(tmp_path):
    leave(tmp_path / "one")
    with pytest.raises(ValueError, match=r"is not a dbjax run; it contains the runs .*one"):
        main([str(tmp_path)])
    with pytest.raises(ValueError, match="needs WORKDIR"):
        main([])


def test_data_cannot_end_its_script():
    assert "<" not in page.embedded({"label": "</script><!--", "x": float("nan")})
    assert json.loads(page.embedded(["</script>", float("inf")])) == ["</script>", None]
