"""Which calls take too long, by hand."""

import math

import pytest

from dbjax.algorithms.sandblaster.stragglers import Job, StragglerDetector
from dbjax.runtime import Future


def job(kind="process", portion=0, begin_s=0.0, place=1):
    return Job(kind, 0, 0, 1, (portion,), begin_s, place, False, Future())


def never(job):
    return False


def learned(after, *times_s):
    """One that has seen portions take so long."""
    overdue = StragglerDetector(after)
    for took_s in times_s:
        overdue.answered(job(begin_s=10.0), 10.0 + took_s)
    return overdue


def test_a_portion_is_overdue_after_so_many_times_the_median():
    """Of 1, 2, 30 and 3 s it is 2.5 s; one slow replica changes little."""
    overdue = learned(1.5, 1.0, 2.0, 30.0, 3.0)
    first, second = job(begin_s=100.0), job(begin_s=101.0, place=2)
    overdue.add(first)
    overdue.add(second)
    assert overdue.next(never) == (100.0 + 1.5 * 2.5, first)
    overdue.take(first)
    assert overdue.next(never) == (101.0 + 1.5 * 2.5 * 2, second)  # it waits for another


def test_one_that_waited_took_its_share_of_the_time():
    overdue = StragglerDetector(1.0)
    overdue.answered(job(begin_s=0.0, place=3), 6.0)
    overdue.add(job(begin_s=50.0))
    assert overdue.next(never)[0] == 52.0


def test_sendings_are_held_against_the_longest_of_their_evaluation():
    overdue = StragglerDetector(2.0)
    for took_s in (3.0, 1.0):
        overdue.answered(job("send", begin_s=0.0), took_s)
    overdue.add(job("send", begin_s=20.0))
    assert overdue.next(never)[0] == 26.0
    overdue.begin()  # a new evaluation: nothing is open, nothing is known of sendings
    assert overdue.next(never) is None
    overdue.add(job("send", begin_s=20.0))
    assert overdue.next(never) is None


def test_where_nothing_is_known_nothing_is_overdue_but_at_once():
    for after, due in ((1.5, None), (0.0, 7.0)):
        overdue = StragglerDetector(after)
        overdue.add(job(begin_s=7.0))
        found = overdue.next(never)
        assert (found and found[0]) == due
    assert learned(math.inf, 1.0).next(never) is None


def test_what_is_closed_is_forgotten_and_the_soonest_due_comes_first():
    overdue = learned(1.0, 4.0)
    overdue.answered(job("send", begin_s=0.0), 1.0)
    jobs = [job(portion=0, begin_s=0.0), job(portion=1, begin_s=1.0), job("send", 2, begin_s=3.5)]
    for one in jobs:
        overdue.add(one)
    assert overdue.next(never) == (4.0, jobs[0])
    assert overdue.next(lambda one: one.portions == (0,)) == (4.5, jobs[2])
    overdue.take(jobs[2])
    assert overdue.next(never) == (5.0, jobs[1])  # the first one is gone for good


def test_whom_nobody_can_help_comes_back_in_its_place():
    overdue = learned(1.0, 1.0)
    jobs = [job(portion=p, begin_s=float(p)) for p in range(3)]
    for one in jobs:
        overdue.add(one)
    overdue.postpone(jobs[0])
    overdue.postpone(jobs[1])
    assert overdue.next(never)[1] is jobs[2]
    overdue.retry()
    order = []
    for _ in jobs:
        order.append(overdue.next(never)[1])
        overdue.take(order[-1])
    assert order == jobs


def test_what_it_has_learned_is_known_to_another():
    first, second = learned(1.0, 5.0, 7.0), StragglerDetector(1.0)
    second.load_state_dict(first.state_dict())
    second.add(job(begin_s=0.0))
    assert second.next(never)[0] == pytest.approx(6.0)
    for one in (first, second):  # and they go on alike
        for _ in range(2):
            one.answered(job(begin_s=0.0), 1.0)
    assert first.state_dict() == second.state_dict()
    assert first.state_dict()[2] == 3.0  # the median of 5, 7, 1, 1
