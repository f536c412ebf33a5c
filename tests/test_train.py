"""`run` by hand: when it looks, what it writes down, and where it goes on."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour, sgd
from dbjax.runtime.ray import RayOptions
from tests.checkpoint.stopped import ShardsOnly


def counting(params, batch):
    return -jnp.sum(params)  # every gradient is -1: at rate 1 parameters count updates


TASK = dbjax.Task(
    jnp.zeros(2),
    counting,
    np.arange(60, dtype=np.float32),
    batch_size=1,
    evaluate=lambda params: {"count": params[0]},
)
SECOND = dbjax.Cluster(compute_s=1.0)
ONE = downpour.Config(optax.sgd(1.0), replicas=1, shards=1)


def run(config=ONE, cluster=SECOND, **kwargs):
    return dbjax.run(TASK, config, cluster=cluster, **kwargs)


def stopped(config, until_s, **kwargs):
    kept = ShardsOnly()
    run(config, until_s=until_s, checkpoints=kept, **kwargs)
    return kept.all[-1]


@pytest.mark.parametrize(
    ("until_s", "every_s", "times"),
    [
        (8.5, 2.6, [0.0, 2.6, 5.2, 7.8, 8.5]),
        (10.4, 2.6, [0.0, 2.6, 5.2, 7.8, 10.4]),  # at the end once
        (0.3, 0.1, [0.0, 0.1, 0.2, 0.3]),  # 3 x 0.1 is above 0.3
        (2.1, 0.7, [0.0, 0.7, 1.4, 2.1]),  # and 3 x 0.7 below 2.1
        (8.5, None, [0.0, 8.5]),
    ],
)
def test_evaluations_come_when_they_are_due_and_once_at_the_end(until_s, every_s, times):
    result = run(until_s=until_s, evaluate_every_s=every_s)
    found = result.evaluations
    assert [row["time_s"] for row in found] == pytest.approx(times)
    # an update each second, from 1 s on
    assert [row["updates"] for row in found] == [int(t) for t in times]
    assert [row["count"] for row in found] == [row["updates"] for row in found]


def test_a_result_says_where_its_numbers_come_from():
    result = run(until_s=3.5)
    summary = result.summary
    assert (summary["clock"], summary["time_s"], summary["updates"]) == ("virtual", 3.5, 3)
    assert summary["interrupted"] is None
    assert summary["wall_s"] > 0
    assert result.params.tolist() == [3.0, 3.0]
    assert result.staleness_histogram == {0: 3}
    assert all(row["node"] == "evaluator" for row in result.evaluations)
    assert [row["step"] for row in result.trace.rows if "step" in row] == [0, 1, 2]


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_a_run_that_is_taken_up_goes_on_with_time_steps_and_parameters(runtime):
    """Stopped at 3.5 s, after 3 updates; the computation that was under way is done again."""
    content = stopped(ONE, 3.5)
    assert content.time_s == 3.5
    config = dataclasses.replace(ONE, steps=5)
    cluster = SECOND if runtime == "virtual" else None
    result = dbjax.run(TASK, config, runtime=runtime, cluster=cluster, resume=content)
    losses = [row for row in result.trace.rows if "step" in row]
    assert [row["step"] for row in losses] == [0, 1, 2, 3, 4]
    times = [row["time_s"] for row in losses]
    if runtime == "virtual":
        assert times == [1.0, 2.0, 3.0, 4.5, 5.5]
        assert result.summary["time_s"] == 5.5
    else:
        assert times == sorted(times)
        assert times[3] > 3.5
    assert result.params.tolist() == [5.0, 5.0]
    assert result.summary["updates"] == 5


def first_steps(result, since_s):
    """Of each replica, when its first step after that time ended."""
    found = {}
    for row in result.trace.rows:
        if "step" in row and row["time_s"] > since_s:
            found.setdefault(row["node"], (row["time_s"], row["step"]))
    return found


def test_the_rest_of_a_warm_start_of_seconds_is_waited_for():
    """Until 5 s replica 0 is alone, whether the run was taken up at 2.5 s or not."""
    config = dataclasses.replace(ONE, replicas=2, warm_start_s=5.0)
    content = stopped(config, 2.5)
    found = first_steps(run(config, until_s=9.0, resume=content), 2.5)
    assert found == {"replica/0": (3.5, 2), "replica/1": (6.0, 0)}


def test_the_rest_of_a_warm_start_of_updates_is_waited_for():
    """Of 5 updates 2 are there: the next three are at 3.5, 4.5 and 5.5 s."""
    config = dataclasses.replace(ONE, replicas=2, warm_start_updates=5)
    content = stopped(config, 2.5)
    found = first_steps(run(config, until_s=9.0, resume=content), 2.5)
    assert found == {"replica/0": (3.5, 2), "replica/1": (6.5, 0)}


def test_a_warm_start_that_is_over_is_not_begun_again():
    config = dataclasses.replace(ONE, replicas=2, warm_start_s=1.0, warm_start_updates=1)
    content = stopped(config, 4.5)  # 4 and 3 updates
    found = first_steps(run(config, until_s=9.0, resume=content), 4.5)
    assert found == {"replica/0": (5.5, 4), "replica/1": (5.5, 3)}


@pytest.mark.parametrize(
    ("replicas", "n_push", "first"), [(2, 1, 15), (5, 1, 6), (2, 2, 16), (5, 2, 6), (3, 2, 10)]
)
def test_other_numbers_of_replicas_go_on_where_the_others_were_together(replicas, n_push, first):
    """Three make 10 steps each in 10.5 s. Of 30 pushes, two have 15 each and five 6.

    With n_push = 2 there are 15 pushes: of two replicas 8 each, rounded up, which are 16 steps;
    of five 3 each, which are 6; of three 5 as before.
    """
    config = dataclasses.replace(ONE, replicas=3, n_push=n_push, shards=2)
    content = stopped(config, 10.5)
    assert [state.snapshot.version for state in content.shards] == [30 // n_push] * 2
    other = dataclasses.replace(config, replicas=replicas)
    found = first_steps(run(other, until_s=12.0, resume=content), 10.5)
    assert found == {f"replica/{r}": (11.5, first) for r in range(replicas)}


@pytest.mark.parametrize("replicas", [1, 3])
def test_checkpoints_every_so_many_updates(replicas):
    """Of the shard that is behind; a second is enough to see that one came."""
    kept = ShardsOnly()
    config = dataclasses.replace(ONE, replicas=replicas, shards=2)
    every = dbjax.Every(updates=4 * replicas)
    run(config, until_s=13.5, checkpoints=kept, checkpoint_every=every)
    *taken, last = kept.all
    versions = [[state.snapshot.version for state in content.shards] for content in taken]
    assert versions == [[4 * replicas * k] * 2 for k in (1, 2, 3)]
    # found out at the next look: at most two steps of looking late
    assert all(4 * k <= content.time_s < 4 * k + 1 for k, content in enumerate(taken, 1))
    assert last.time_s == 13.5


def test_checkpoints_every_so_many_seconds():
    kept = ShardsOnly()
    run(until_s=7.0, checkpoints=kept, checkpoint_every=dbjax.Every(seconds=2.0))
    assert [content.time_s for content in kept.all] == [2.0, 4.0, 6.0, 7.0]
    both = ShardsOnly()
    run(until_s=7.0, checkpoints=both, checkpoint_every=dbjax.Every(seconds=2.0, updates=1000))
    assert [content.time_s for content in both.all] == [2.0, 4.0, 6.0, 7.0]


def test_a_main_beside_the_run_sees_it_and_can_end_it():
    seen = []

    async def beside(node, machines):
        seen.append(machines.nodes())
        await node.sleep(4.5)
        machines.stop()

    result = run(until_s=100.0, background=beside)
    assert seen == [["shard/0", "replica/0"]]
    assert result.summary["updates"] == 4


def test_a_log_says_why_a_run_cannot_be_done_again():
    def script(**kwargs):
        lines = []
        run(log=dbjax.EventLog(lines.append), **kwargs)
        return dbjax.Script(lines)

    assert script(until_s=2.5).no_replay is None
    assert script(until_s=2.5).count() > 4
    dying = dataclasses.replace(SECOND, failures=(dbjax.Failure("replica/0", 1.5, 1.7),))
    assert script(until_s=2.5, cluster=dying).no_replay is None
    content = stopped(ONE, 1.5)
    assert "resumed" in script(until_s=2.5, resume=content).no_replay


def test_synchronous_steps_take_as_long_as_the_slowest():
    slow = dataclasses.replace(SECOND, machines={"replica/1": dbjax.Machine(speed=0.4)})
    result = run(sgd.Config(optax.sgd(1.0), replicas=3, steps=2), slow)
    assert result.summary["time_s"] == 5.0
    assert result.summary["updates"] == 2
    assert result.summary["examples"] == 6


def test_options_of_ray_are_for_ray():
    with pytest.raises(ValueError, match="ray options are for runtime='ray', not 'virtual'"):
        run(until_s=1.0, ray=RayOptions())
