"""Algorithm 1.1 by hand: when it fetches, pushes, steps locally, and starts."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.runtime.cluster import Failure


def counting(params, batch):
    return -jnp.sum(params)  # every gradient is -1: at rate 1 parameters count gradients


TASK = dbjax.Task(jnp.zeros(2), counting, np.arange(60, dtype=np.float32), batch_size=1)


def run(until_s=None, cluster=None, **kwargs):
    trace = dbjax.Trace(max_spans=1000)
    config = downpour.Config(**{"rule": optax.sgd(1.0), "replicas": 1, "shards": 1} | kwargs)
    result = dbjax.run(TASK, config, cluster=cluster, until_s=until_s, trace=trace)
    return result


def told(result, node="replica/0", kinds=("fetch", "push", "compute")):
    spans = [s for s in result.trace.spans if s.node == node and s.kind in kinds]
    spans.sort(key=lambda s: (s.start_s, s.end_s))
    return " ".join(f"{s.kind}@{s.start_s:g}-{s.end_s:g}" for s in spans)


SLOW = dbjax.Cluster(compute_s=1.0, latency_s=0.25)


def test_waiting_for_each_fetch():
    assert told(run(cluster=SLOW, steps=2)) == (
        "fetch@0-0.5 compute@0.5-1.5 push@1.5-2 fetch@1.5-2 compute@2-3 push@3-3.5"
    )


def test_n_fetch_and_n_push():
    result = run(cluster=SLOW, steps=5, n_fetch=2, n_push=3)
    assert told(result) == (
        "fetch@0-0.5 compute@0.5-1.5 compute@1.5-2.5 fetch@2.5-3 compute@3-4 push@4-4.5 "
        "compute@4-5 fetch@5-5.5 compute@5.5-6.5 push@6.5-7"
    )
    assert result.summary["updates"] == 2  # three gradients, and the two left over at the end
    assert float(result.params[0]) == 5.0


def test_an_overlapped_fetch_is_taken_at_the_next_boundary():
    result = run(cluster=SLOW, steps=3, overlap=True)
    assert told(result) == (
        "fetch@0-0.5 compute@0.5-1.5 push@1.5-2 fetch@1.5-2 compute@1.5-2.5 "
        "push@2.5-3 fetch@2.5-3 compute@2.5-3.5 push@3.5-4"
    )


def test_one_push_in_flight_at_most():
    far = dbjax.Cluster(compute_s=1.0, latency_s=2.0)
    assert told(run(cluster=far, steps=3, overlap=True), kinds=("push",)) == (
        "push@5-9 push@9-13 push@13-17"
    )


def test_local_steps_count_between_fetches():
    seen = []
    task = dbjax.Task(
        jnp.zeros(2), lambda w, batch: -jnp.sum(w), np.zeros(9, np.float32), batch_size=1
    )
    trace = dbjax.Trace(listeners=[lambda row: seen.append(row)])
    config = downpour.Config(
        rule=optax.sgd(1.0),
        local_rule=optax.sgd(0.5),
        replicas=1,
        shards=1,
        steps=4,
        n_fetch=4,
        n_push=4,
    )
    result = dbjax.run(task, config, trace=trace)
    assert [-float(row["loss"]) for row in seen if "loss" in row] == [0.0, 1.0, 2.0, 3.0]
    assert result.params.tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("overlap", "moved"), [(False, [0.0, 1.0, 0.0, 2.0]), (True, [0.0, 1.0, 3.0, 0.0])]
)
def test_no_local_step_is_taken_where_the_next_fetch_replaces_it(overlap, moved):
    """The local rule's k-th step is k long, so it tells how many steps came before.

    The server's rule moves nothing, and every other step begins with a fetch. With overlap the
    fetch at step 2 arrives for step 3 only, and the second local step is taken before it.
    """
    result = run(
        cluster=SLOW,
        rule=optax.sgd(0.0),
        local_rule=optax.sgd(1.0, momentum=1.0),
        steps=4,
        n_fetch=2,
        n_push=2,
        overlap=overlap,
    )
    assert [-float(row["loss"]) / 2 for row in result.trace.rows if "loss" in row] == moved


@pytest.mark.parametrize(
    ("warm", "first"), [({"warm_start_s": 3.5}, 3.5), ({"warm_start_updates": 3}, 3.0)]
)
def test_warm_start_releases_the_others(warm, first):
    result = run(replicas=3, until_s=6.0, cluster=dbjax.Cluster(compute_s=1.0), **warm)
    begins = {n: min(s.start_s for s in result.trace.spans if s.node == n and s.kind == "compute")
              for n in ("replica/0", "replica/1", "replica/2")}  # fmt: skip
    assert begins == {"replica/0": 0.0, "replica/1": first, "replica/2": first}


def test_replicas_see_their_own_part_of_the_data():
    task = dbjax.Task(
        jnp.zeros(1), lambda w, batch: jnp.sum(w) * 0 + batch[0], TASK.data, batch_size=1
    )
    result = dbjax.run(task, downpour.Config(replicas=3, shards=1, steps=20))
    seen = {}
    for row in result.trace.rows:
        if "loss" in row:
            seen.setdefault(row["node"], set()).add(float(row["loss"]))
    assert all(len(values) == 20 for values in seen.values())
    assert set.union(*seen.values()) == set(range(60))


def test_a_replica_that_returns_pushes_again_and_nothing_twice():
    cluster = dbjax.Cluster(compute_s=1.0, failures=(Failure("replica/0", 2.5, back_s=3.0),))
    result = run(cluster=cluster, steps=4, replicas=2)
    assert result.summary["updates"] == 4 + 4  # it goes on after what the shards have of it
    assert result.summary["repeated_pushes"] == 0
    assert float(result.params[0]) == 8.0
    assert (result.summary["deaths"], result.summary["returns"]) == (1, 1)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"replicas": 0}, "downpour.replicas=0"),
        ({"n_push": 0}, "downpour.n_push=0"),
        ({"warm_start_s": -1.0}, "warm_start_s=-1.0"),
        ({"steps": 2, "warm_start_updates": 3}, "warm_start_updates=3"),
    ],
)
def test_bad_configs_are_refused(kwargs, text):
    with pytest.raises(ValueError, match=text):
        downpour.Config(**kwargs)


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_the_loss_is_traced_once_for_all_replicas(runtime):
    traces = []

    def loss(params, batch):
        traces.append(1)
        return jnp.sum(params) * batch[0]

    task = dbjax.Task(jnp.zeros(2), loss, TASK.data, batch_size=1)
    dbjax.run(task, downpour.Config(replicas=5, shards=2, steps=4, n_fetch=2), runtime=runtime)
    checked = 1  # before the run, for what the loss returns
    compiled = 1 if runtime == "virtual" else 5  # threads may begin it at once
    assert len(traces) <= checked + compiled


@pytest.mark.parametrize(
    ("n_fetch", "n_push", "expected"), [(1, 1, 4.0), (3, 3, 4.0), (5, 1, 14.0), (2, 3, None)]
)
def test_staleness_is_as_predicted(n_fetch, n_push, expected):
    steps = n_fetch * n_push * 60
    machine = dbjax.Machine(law="lognormal", sigma=0.2)
    cluster = dbjax.Cluster(compute_s=1.0, machine=machine)
    result = run(cluster=cluster, replicas=5, steps=steps, n_fetch=n_fetch, n_push=n_push)
    staleness = result.summary["staleness_updates"]
    assert staleness["predicted_mean"] == expected
    if expected is not None:
        assert staleness["mean"] == pytest.approx(expected, rel=0.05)
