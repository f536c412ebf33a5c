"""Staleness by hand: which version a push names, and what the books make of it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dbjax
from dbjax.algorithms import downpour
from dbjax.monitoring.metrics import check_staleness_accounting
from dbjax.parameter_server import AccumulatedGradient, StalenessAccounting

GRADIENTS = [({"w": jnp.full(2, value)}, {"v": jnp.full(1, 10 * value)}) for value in (1.0, 2.0)]


def test_a_push_names_the_versions_of_its_oldest_gradient():
    accrued = AccumulatedGradient().plus(GRADIENTS[0], (3, 5), 8).plus(GRADIENTS[1], (4, 7), 16)
    pushes = list(accrued.messages("replica/1", 2))
    assert [push.version for push in pushes] == [3, 5]
    assert [(push.sequence, push.examples, push.nbytes) for push in pushes] == [
        (2, 24, 8), (2, 24, 4)
    ]  # fmt: skip
    assert pushes[0].gradient["w"].tolist() == [3.0, 3.0]  # the sum, not the mean
    assert pushes[1].gradient["v"].tolist() == [30.0]


def counting(params, batch):
    return -jnp.sum(params)


def histogram(cluster, until_s, **kwargs):
    task = dbjax.Task(jnp.zeros(2), counting, np.zeros(60, np.float32), batch_size=1)
    config = downpour.Config(optax.sgd(1.0), shards=1, **kwargs)
    return dbjax.run(task, config, cluster=cluster, until_s=until_s).staleness_histogram


def test_staleness_by_hand_where_a_push_is_of_several_fetches():
    """Replica 0 computes for 1 s, replica 1 for 2.75 s; each pushes two gradients together.

    Replica 0 pushes at 2, 4, 6 and 8 s, what it fetched at 0, 2, 4 and 6 s first. Replica 1
    fetches version 0 at 0 s and version 1 at 2.75 s, and pushes at 5.5 s onto version 2: 2 updates
    late. That one lies between what replica 0 fetched at 4 s and pushes at 6 s: 1 late.
    """
    slow = {"replica/1": dbjax.Machine(speed=1 / 2.75)}
    cluster = dbjax.Cluster(compute_s=1.0, machines=slow)
    assert histogram(cluster, 9.0, replicas=2, n_push=2) == {0: 3, 1: 1, 2: 1}


def test_staleness_by_hand_where_a_fetch_serves_several_pushes():
    """One replica, which fetches every third time: its pushes are 0, 1 and 2 updates late."""
    assert histogram(None, 6.5, replicas=1, n_fetch=3) == {0: 2, 1: 2, 2: 2}


def state_dict():
    """Two replicas, in turn: each fetches right behind its own push."""
    staleness = StalenessAccounting()
    for replica in "ab":
        staleness.fetched(replica, 0)
    for version, (replica, computed_at) in enumerate([("a", 0), ("b", 0), ("a", 1), ("b", 2)]):
        staleness.applied(replica, computed_at, version)
        staleness.fetched(replica, version + 1)
    return staleness


def test_the_books_by_hand():
    """Delays 0 + 1 + 1 + 1, and b's last push is at the end, a's one update before it."""
    staleness = state_dict()
    assert staleness.histogram == {0: 1, 1: 3}
    assert staleness.balance() == (4, 4)  # 3, and 1 in flight; (M - 1) T
    copied = staleness.copy()
    copied.applied("a", 3, 4)
    assert (staleness.version, copied.version) == (4, 5)


def test_the_identity_shows_an_update_that_was_not_booked_and_no_wrong_version():
    wrong = state_dict()
    wrong.fetched("a", 4)
    wrong.applied("a", 3, 5)  # version 4 was made by a push that nobody booked
    assert wrong.balance()[0] != wrong.balance()[1]
    report = type("Report", (), {"staleness": wrong})
    with pytest.raises(RuntimeError, match="missing in the accounts"):
        check_staleness_accounting([report])
    wrong = state_dict()
    wrong.fetched("a", 4)
    wrong.applied("a", 4, 4)  # it was computed at 3
    assert wrong.balance()[0] == wrong.balance()[1]
    with pytest.raises(RuntimeError, match="pushed against version 1, never fetched"):
        state_dict().applied("b", 1, 4)


def test_a_shard_that_was_restored_books_orphans_as_if_they_were_fresh():
    staleness = state_dict()
    staleness.restored = True
    staleness.applied("c", 9, 4)  # it fetched version 9 of a life that is lost
    assert staleness.orphans == 1
    assert staleness.histogram == {0: 2, 1: 3}
