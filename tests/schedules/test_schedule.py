"""The table of a run's timing: what it refuses, what it says, how it is made and saved."""

import dataclasses

import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd, top_k
from dbjax.schedules.schedule import Schedule, constant, from_delays, geometric, round_robin
from tests.schedules.drawn import case_of, task_of

CLUSTER = dbjax.Cluster(compute_s=0.1, latency_s=1e-3)


def table(**kwargs):
    """A schedule of two replicas and two shards, in which the second push is still on its way."""
    values = {
        "replica": [0, 1, 0], "step": [0, 0, 1], "version": [[0, 0], [0, 1], [1, 1]],
        "own": [False] * 3, "stepped": [False] * 3, "life": [0] * 3, "push": [0, 1, 2],
        "position": [[0, 0], [1, -1], [2, 1]], "time_s": [[1.0, 1.0], [2.0, np.nan], [3.0, 4.0]],
    }  # fmt: skip
    return Schedule(**{name: np.array(value) for name, value in (values | kwargs).items()})


def test_a_table_says_what_is_in_it():
    found = table()
    assert (found.gradients, found.pushes, found.shards, found.replicas) == (3, 3, 2, 2)
    np.testing.assert_array_equal(found.staleness(), [[0, 0], [1, -1], [1, 0]])
    np.testing.assert_array_equal(found.version_skew(), [0, 1, 0])
    np.testing.assert_allclose(found.throughput(), [2 / 4, 0.5 / 4])
    with pytest.raises(ValueError, match="read-only"):
        found.replica[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.mean = True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": [0, 0]}, r"Schedule\.step has the shape \(2,\), but there are 3 gradients"),
        ({"version": [[0], [0], [1]]}, r"Schedule\.version has the shape \(3, 1\)"),
        ({"time_s": [[1.0, 1.0]]}, r"Schedule\.time_s has the shape \(1, 2\), not \(3, 2\)"),
        ({"push": [0, 0, 2]}, r"Schedule\.push must number all pushes"),
        ({"push": [1, 0, 2]}, r"Schedule\.push must ascend"),
        ({"replica": [0, -1, 0]}, r"Schedule\.replica must not be negative"),
        ({"position": [[0, 0], [0, -1], [2, 1]]}, r"position of shard 0 must be a permutation"),
        ({"version": [[1, 0], [0, 1], [1, 1]]}, r"version\[0, 0\]=1 is later than"),
        ({"version": [[0, 0], [0, 3], [1, 1]]}, r"version of shard 1 reaches 3, but there are 2"),
    ],
)
def test_a_table_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        table(**wrong)


def test_pushes_that_wait_for_each_other_are_refused():
    from dbjax.schedules.turns import turns_of

    crossed = table(version=[[0, 0], [0, 0], [0, 0]], position=[[0, 1], [1, 0], [2, 2]])
    assert len(turns_of(crossed)) == 4  # shard 1 waits for the second push
    waiting = table(
        version=[[0, 1], [1, 0], [2, 2]],
        position=[[0, 1], [1, 0], [2, 2]],
        time_s=np.ones((3, 2)),
    )
    with pytest.raises(ValueError, match="pushes wait for each other"):
        turns_of(waiting)


def test_a_saved_table_is_read_again_and_damage_is_noticed(tmp_path):
    path, found = tmp_path / "table.npz", table()
    found.save(path)
    again = Schedule.load(path)
    assert again.digest == found.digest
    for name in ("replica", "version", "position", "push", "own"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    content = dict(np.load(path))
    np.savez(path, **content | {"step": np.array([0, 0, 2], np.int32)})
    with pytest.raises(ValueError, match="is damaged: its digest differs"):
        Schedule.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a schedule"):
        Schedule.load(path)


def test_formulas(tmp_path):
    assert constant(50, 4).staleness().ravel().tolist() == [0, 1, 2, 3] + [4] * 46
    turn = round_robin(40, 8)
    assert turn.staleness().ravel().tolist() == list(range(7)) + [7] * 33
    assert turn.replica[:9].tolist() == [*range(8), 0]
    drawn = geometric(20_000, 6.0, seed=1)
    stale = drawn.staleness()[100:]
    assert abs(stale.mean() - 6.0) < 0.3  # six standard errors, the deviation being 6.5
    assert drawn.digest == geometric(20_000, 6.0, seed=1).digest != geometric(20_000, 6.0).digest
    (tmp_path / "delays").write_text("0\n1\n0\n2\n")
    assert from_delays(tmp_path / "delays").staleness().ravel().tolist() == [0, 1, 0, 2]
    for wrong in ([0, -1], [0.5], [], [[0]]):
        with pytest.raises(ValueError, match="delays must be whole numbers"):
            from_delays(wrong)
    with pytest.raises(ValueError, match="mean=-1"):
        geometric(5, -1)


def test_the_table_of_a_run_is_that_of_its_pushes():
    cfg = downpour.Config(optax.sgd(0.01), replicas=4, shards=2, steps=25)
    made = dbjax.schedule(task_of(2), cfg, CLUSTER)
    run = dbjax.run(task_of(2), cfg, cluster=CLUSTER, executor="engine")
    values, counts = np.unique(made.staleness(), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == run.staleness_histogram
    assert made.pushes == 100
    assert made.digest == dbjax.schedule(task_of(2), cfg, CLUSTER).digest
    other = dataclasses.replace(cfg, rule=optax.adam(0.3))
    assert dbjax.schedule(task_of(2), other, CLUSTER).digest == made.digest
    together = dbjax.schedule(task_of(1), sgd.Config(replicas=3, steps=5), CLUSTER)
    assert (together.mean, together.gradients, together.pushes) == (True, 15, 5)


def test_what_has_no_schedule_is_said():
    with pytest.raises(ValueError, match="nothing would end this run"):
        dbjax.schedule(task_of(1), downpour.Config(replicas=2))
    compressed = top_k.Config(optax.sgd(0.01), replicas=2, shards=1, steps=3)
    with pytest.raises(ValueError, match="no schedule can be made of this run: its arithmetic"):
        dbjax.schedule(task_of(1), compressed)


def test_the_digest_of_a_part_does_not_depend_on_what_comes_later():
    case = case_of(2)
    config = dataclasses.replace(case.config, steps=None)
    tables = [
        dbjax.schedule(case.task, config, case.kwargs["cluster"], until_s=until_s)
        for until_s in (1.0, 2.0)
    ]
    versions = (tables[0].position >= 0).sum(0)
    assert tables[0].digest_until(versions) == tables[1].digest_until(versions)
    assert tables[1].digest_until(versions + 1) != tables[1].digest_until(versions)
