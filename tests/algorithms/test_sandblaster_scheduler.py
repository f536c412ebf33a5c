"""The pool of replicas: who is given what, with replicas that answer when the test says so."""

import pytest

from dbjax.algorithms.sandblaster.scheduler import CoordinatorCounts, Scheduler
from dbjax.algorithms.sandblaster.work_queue import WorkQueue
from dbjax.errors import NodeDied, StateLost
from dbjax.runtime import ArrivalQueue, Future, first_of, ready


class Clock:
    """A node whose time the test sets; it sleeps for ever."""

    def __init__(self):
        self.time_s, self.alarms = 0.0, []

    def now(self):
        return self.time_s

    def arrivals(self, label):
        return ArrivalQueue(label)

    def is_done(self, future):
        return ready(future.done())

    def first(self, futures):
        return first_of(futures)

    def sleep(self, seconds):
        self.alarms.append((self.time_s + seconds, Future("alarm")))
        return self.alarms[-1][1]


class Replica:
    """A handle that notes its calls."""

    def __init__(self, name):
        self.name, self.calls, self.returns = name, [], []

    def call(self, method, *args):
        answer = Future(method.__name__)
        self.calls.append((method.__name__, args, answer))
        return answer

    def up(self):
        self.returns.append(Future("return"))
        return self.returns[-1]

    def open(self, kind="process_portion"):
        """Portions of the calls that it has not answered."""
        return [args[-1] for name, args, answer in self.calls if name == kind and not answer.done()]

    def answer(self, value=True, kind=None):
        """The first call that is open."""
        _, _, future = next(
            call for call in self.calls if not call[2].done() and kind in (None, call[0])
        )
        future.set_result(value)

    def die(self):
        for _, _, answer in self.calls:
            if not answer.done():
                answer.set_error(NodeDied(f"{self.name} died"))


class Case:
    """One evaluation of `portions` by so many replicas."""

    def __init__(self, portions, replicas, *, send_every=1, prefetch=0, backup_after=1.5):
        self.clock, self.counts = Clock(), CoordinatorCounts()
        self.replicas = [Replica(f"replica/{r}") for r in range(replicas)]
        self.scheduler = Scheduler(self.clock, self.replicas, self.counts, prefetch=prefetch,
                         backup_after=backup_after)  # fmt: skip
        self.portions, self.send_every = portions, send_every
        self.begin(7)

    def begin(self, evaluation):
        portions, replicas = range(self.portions), len(self.replicas)
        plan = {r: portions[r::replicas] for r in range(replicas)}
        self.batch = WorkQueue({"only": tuple(portions)}, plan, self.send_every)
        self.going, self.ended = self.scheduler.process(self.batch, evaluation, 100), False
        self._resume()

    def _resume(self):
        try:
            waits = self.going.send(None)
        except StopIteration:
            self.ended = True
            return
        waits.on_done(self._resume)

    def alarm(self, at_s):
        """The clock comes to an alarm."""
        due_s, future = self.clock.alarms[-1]
        assert due_s == pytest.approx(at_s)
        self.clock.time_s = due_s
        future.set_result(None)

    def finish(self):
        while not self.ended:
            next(r for r in self.replicas if any(not c[2].done() for c in r.calls)).answer()


def test_each_has_one_portion_at_a_time_of_its_own_and_then_the_others():
    case = Case(5, 2)
    first, second = case.replicas
    assert (first.open(), second.open()) == ([0], [1])
    first.answer()
    assert first.open("send_gradients") == [(0,)]
    assert (first.open(), second.open()) == ([2], [1])
    name, args, _ = first.calls[0]
    assert (name, args) == ("process_portion", (7, 100, 0))  # evaluation, examples, portion
    for _ in range(2):
        first.answer(kind="process_portion")
    assert first.open() == [3]  # its own are done: one of the other's
    case.finish()
    assert case.batch.done()
    assert case.counts.portions == 5


def test_prefetched_portions_wait_at_those_that_have_answered_once():
    case = Case(12, 2, prefetch=2)
    first, second = case.replicas
    assert (first.open(), second.open()) == ([0], [1])
    first.answer()
    assert first.open() == [2, 4, 6]  # one is computed, two wait
    assert second.open() == [1]


def test_gradients_are_sent_every_few_portions_and_the_rest_at_the_end():
    case = Case(5, 1, send_every=2)
    (only,) = case.replicas
    sent = []
    while not case.ended:
        only.answer()
        sent += [s for s in only.open("send_gradients") if s not in sent]
    assert sent == [(0, 1), (2, 3), (4,)]
    assert case.counts.calls == 5 + 3


def one_portion_left(backup_after):
    """At 4 s the first of two replicas has done portions 0 and 2, each in 2 s; 1 is the other's."""
    case = Case(3, 2, backup_after=backup_after)
    first, _ = case.replicas
    for time_s in (2.0, 4.0):
        case.clock.time_s = time_s
        first.answer(kind="process_portion")
    while first.open("send_gradients"):
        first.answer(kind="send_gradients")
    return case, case.replicas


def test_what_is_overdue_is_copied_by_whoever_is_idle_and_the_first_copy_counts():
    """A portion takes 2 s. Portion 1 was begun at 0: at 3 s, which is long past, it is overdue."""
    case, (first, second) = one_portion_left(backup_after=1.5)
    case.alarm(4.0)  # at once
    assert first.open() == [1]
    assert case.counts.backups_started == 1
    first.answer()
    first.answer(kind="send_gradients")
    assert case.ended
    assert (case.counts.backups_won, case.counts.portions) == (1, 3)
    assert second.open() == [1]  # nobody waits for it


def test_a_copy_that_comes_second_does_not_count():
    case = Case(3, 3, backup_after=0.0)
    first, second, third = case.replicas
    first.answer()
    first.answer(kind="send_gradients")
    case.alarm(0.0)
    assert first.open() == [1]
    second.answer()
    first.answer(kind="process_portion")
    assert (case.counts.portions, case.counts.backups_won) == (2, 0)
    assert second.open("send_gradients") == [(1,)]
    assert first.open("send_gradients") == []
    third.answer()
    case.finish()
    assert (case.counts.portions, case.counts.backups_won) == (3, 0)


def test_a_copy_is_made_when_the_time_has_come_and_not_before():
    case, (first, _) = one_portion_left(backup_after=10.0)
    assert first.open() == []
    case.alarm(20.0)  # ten times the 2 s
    assert first.open() == [1]


def test_what_a_dead_replica_had_is_done_by_others_and_it_may_come_back():
    case = Case(6, 2, send_every=3)
    first, second = case.replicas
    second.answer(kind="process_portion")  # 1 is computed and not sent
    second.die()
    assert case.counts.replicas_lost == 1
    done = []
    while len(done) < 3:
        done += first.open()
        first.answer(kind="process_portion")
    second.returns[0].set_result(None)
    assert second.open() != []
    case.finish()
    assert case.batch.done()
    assert case.counts.portions == 1 + 6  # portion 1 was computed twice


def test_a_sending_that_a_shard_does_not_know_is_done_again():
    case = Case(2, 2)
    first, second = case.replicas
    first.answer(kind="process_portion")
    first.answer(False, kind="send_gradients")
    assert first.open("redo") == [(0,)]
    case.finish()
    assert case.batch.done()
    assert second.open() == []


def test_a_shard_that_lost_the_evaluation_ends_it():
    case = Case(2, 1)
    with pytest.raises(StateLost, match="a restored shard does not know evaluation 7"):
        case.replicas[0].answer(None)


def test_answers_of_an_evaluation_before_are_not_counted():
    """Replica 1 is slow: its portion was copied, and it answers in the next evaluation."""
    case = Case(2, 2, backup_after=0.0)
    first, second = case.replicas
    first.answer(kind="process_portion")
    first.answer(kind="send_gradients")
    case.alarm(0.0)
    first.answer(kind="process_portion")
    first.answer(kind="send_gradients")
    assert case.ended
    case.begin(8)
    assert (first.open(), second.open()) == ([0], [1])  # the old one, and nothing new
    second.answer()
    assert case.counts.portions == 2
    assert second.open() == [1]  # of this evaluation
    case.finish()
    assert case.counts.portions == 4
